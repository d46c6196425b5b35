"""Role edges against whole renderings, for the shapes of templates that models publish."""

from itertools import product

import pytest
from jinja2.exceptions import TemplateError

from ramet.frontend.errors import ConstraintError, ModelError
from ramet.runtime.models import hub
from ramet.runtime.template import CHATML, ROLES, ChatTemplate, shortened

# The formats in short form.
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou "
    "are a helper<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = """\
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\nToday Date: " + strftime_now("%d %b %Y") + "\n\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if message.role == 'tool' %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\n\n" + message.content + "<|eot_id|>" }}
    {%- else %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}"""
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = "
    "'<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}{% else %}{% set loop_messages = messages %}"
    "{% set system_message = '' %}{% endif %}{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + (system_message if loop.first else '') + "
    "message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ ' ' + message['content'] + ' ' + eos_token }}{% else %}{{ raise_exception('no such role') }}{% endif %}"
    "{% endfor %}"
)
QWEN25 = """\
{%- if messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first) or message.role == "assistant" %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.index0 == 0 or messages[loop.index0 - 1].role != "tool" %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' }}
        {{- message.content }}
        {{- '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != "tool" %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}"""
QWEN3 = """\
{%- set ns = namespace(last_query=-1) %}
{%- for message in messages %}
    {%- if message.role == 'user' %}{%- set ns.last_query = loop.index0 %}{%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == 'assistant' and loop.index0 > ns.last_query and loop.last %}
        {{- '<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n' + content + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}{% if message['role'] == 'assistant' %}"
    "{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
EXACT = {
    "smollm2": SMOLLM2,
    "llama3": LLAMA3,
    "mistral": MISTRAL,
    "qwen25": QWEN25,
    "gemma": GEMMA,
    "chatml": CHATML,
}
# Mistral 0.3 moves the system prompt to the last user message: earlier text depends on later messages.
MOVING = (
    "{{ bos_token }}{% for m in messages if m.role != 'system' %}{% if m.role == 'user' %}[INST] "
    "{% if loop.last and messages[0].role == 'system' %}{{ messages[0].content }}\n\n{% endif %}{{ m.content }}[/INST]"
    "{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)


def template(source, **options):
    return ChatTemplate(source, context=8192, bos="<s>", eos="</s>", **options)


def conversations(longest):
    for size in range(1, longest + 1):
        for roles in product(ROLES, repeat=size):
            yield roles, [{"role": r, "content": f"text {n} of {r}"} for n, r in enumerate(roles)]


def joined(chat, messages):
    """The conversation from its edges and contents."""
    roles, text = [m["role"] for m in messages], ""
    for n, m in enumerate(messages):
        text += chat.edge(roles[:n], m["role"], "begin") + m["content"] + chat.edge(roles[:n], m["role"], "end")
    return text


def shown(chat, messages):
    """The template's own rendering, or None when it refuses the roles or leaves a content out."""
    try:
        text = chat.render(messages)
    except TemplateError:
        return None
    return text if all(m["content"] in text for m in messages) else None


@pytest.mark.parametrize("name", list(EXACT))
def test_edges_and_contents_are_the_whole_rendering(name):
    chat = template(EXACT[name])
    assert chat.exact, chat.report
    accepted = 0
    for roles, messages in conversations(5 if name in ("mistral", "gemma") else 4):
        whole = shown(chat, messages)
        if whole is None:
            continue
        accepted += 1
        ours = joined(chat, messages)
        if roles[-1] == "tool" and name == "qwen25":  # the turn stays open for another tool's answer
            assert whole == ours + "<|im_end|>\n"
        else:
            assert ours == whole
    assert accepted >= 5


@pytest.mark.parametrize("name", [*EXACT, "llama2", "qwen3"])
def test_an_assistant_turn_begins_with_the_generation_prompt(name):
    chat = template({**EXACT, "llama2": LLAMA2, "qwen3": QWEN3}[name])
    for roles, messages in conversations(3):
        if roles[-1] != "user" or shown(chat, messages) is None:
            continue
        begun = joined(chat, messages) + chat.edge(roles, "assistant", "begin")
        prompt = chat.render(messages, generation=True)
        assert begun.removeprefix(prompt) in ("", " ")
        assert begun.removeprefix(prompt) == (" " if name == "llama2" else "")


def test_llama2_shows_the_system_prompt_inside_the_first_user_message():
    chat = template(LLAMA2)
    assert chat.exact, chat.report
    assert chat.edge((), "system", "begin") == "<s>[INST] <<SYS>>\n"
    assert chat.edge((), "system", "end") == "\n<</SYS>>\n\n"
    assert chat.edge(("system",), "user", "begin") == ""
    messages = [{"role": r, "content": r.upper()} for r in ("system", "user", "assistant", "user", "assistant")]
    assert joined(chat, messages) == chat.render(messages)


def test_qwen3_reports_its_think_block_and_uses_the_generation_prompt():
    chat = template(QWEN3)
    assert not chat.exact
    assert "think" in chat.report
    assert chat.edge(("user",), "assistant", "begin") == "<|im_start|>assistant\n"
    messages = [{"role": r, "content": r.upper()} for r in ("user", "assistant", "user", "assistant")]
    assert joined(chat, messages) == chat.render(messages).replace("<think>\n\n</think>\n\n", "")


def test_a_template_that_moves_contents_is_reported_and_cut_as_it_grows():
    chat = template(MOVING)
    assert not chat.exact
    assert "(system, user, assistant) leaves out message 1" in chat.report
    assert chat.edge(("user",), "assistant", "begin") == ""
    roles = ("system", "user", "assistant", "user")
    messages = [{"role": r, "content": r.upper()} for r in roles]
    assert joined(chat, messages) == "<s>[INST] SYSTEM\n\nUSER[/INST]ASSISTANT</s>[INST] USER[/INST]"


def test_trimming_is_reported():
    assert template(LLAMA3).report == "the template trims contents; they are appended as they are"
    assert template(SMOLLM2).report == ""


def test_tool_answers_share_a_turn_in_qwen25():
    chat = template(QWEN25)
    roles = ("user", "assistant")
    assert chat.edge(roles, "tool", "begin") == "<|im_start|>user\n<tool_response>\n"
    assert chat.edge(roles, "tool", "end") == "\n</tool_response>"
    assert chat.edge((*roles, "tool"), "tool", "begin") == "\n<tool_response>\n"
    assert chat.edge((*roles, "tool"), "assistant", "begin") == "<|im_end|>\n<|im_start|>assistant\n"


def test_fallbacks():
    marked = template(None, names=["<|im_start|>", "<|im_end|>"])
    assert marked.fallback
    assert marked.edge(("user",), "assistant", "begin") == "<|im_start|>assistant\n"
    plain = template(None)
    assert plain.exact
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    assert joined(plain, messages) == "user:\nHi\n\nassistant:\nHo\n\n"


def test_jinja_is_transformers_dialect():
    source = (
        "{% for m in messages %}\n    {% generation %}{{ m.role | tojson }}{% endgeneration %}\n"
        "{{ m.content }}{% if loop.last %}{% break %}{% endif %}\n{% endfor %}"
    )
    assert template(source).edge((), "user", "begin") == '"user"'


# -- refusals


def test_unknown_roles_list_the_usable_ones():
    with pytest.raises(ConstraintError, match="role='robot': unknown; usable here: system, user, assistant, tool"):
        template(SMOLLM2).edge((), "robot", "begin")
    with pytest.raises(ConstraintError, match=r"System role not supported.*usable after nothing: user"):
        template(GEMMA).edge((), "system", "begin")


def test_an_order_that_the_template_refuses_names_it():
    chat = template(MISTRAL)
    for _ in range(2):  # the second time from the cache
        with pytest.raises(ConstraintError, match=r"roles user, user \(Conversation roles must.*after user: assistant"):
            chat.edge(("user",), "user", "begin")
    with pytest.raises(ConstraintError, match="alternate"):
        chat.edge(("user", "assistant"), "assistant", "begin")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% for %}", "does not compile"),
        ("{{ raise_exception('never') }}", "no conversation.*never"),
        ("nothing of it", "no conversation.*leaves out"),
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", "rewrites"),
        (
            "{% for i in range(90000) %}{{ 'long text' }}{% endfor %}{{ messages[0].content }}",
            "more than 32768 characters",
        ),
        ("{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}", "more than 2 s"),
        ("{{ 'a' * 999999999 }}{{ messages[0].content }}", "may not repeat"),
        ("{{ 'a'.ljust(999999999) }}{{ messages[0].content }}", "numbers over"),
        ("{{ 'a' | center(999999999) }}{{ messages[0].content }}", "such widths"),
        ("{{ '%999999999d' % 1 }}{{ messages[0].content }}", "such widths"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}{{ messages[0].content }}", "no conversation"),
        ("{{ messages.append(1) }}{{ messages[0].content }}", "no conversation"),
        ("{% set n = namespace() %}{% set n.__class__ = 1 %}{{ messages[0].content }}", "no conversation"),
    ],
)
def test_r03_templates_that_are_refused_at_start(source, message):
    with pytest.raises(ModelError, match=message):
        template(source)


@pytest.mark.model
def test_smollm2s_own_template_equals_transformers():
    from transformers.utils.chat_template_utils import render_jinja_template

    source = hub.load_metadata(hub.resolve()).chat_template
    chat = template(source)
    assert chat.exact
    assert chat.edge((), "user", "begin").startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    for _, messages in conversations(3):
        theirs = render_jinja_template([messages], chat_template=source)[0][0]
        assert joined(chat, messages) == theirs


@pytest.mark.parametrize("name", list(EXACT))
def test_a_long_chat_costs_no_renderings_of_its_own(name, monkeypatch):
    chat = template(EXACT[name])
    messages = [{"role": ("user", "assistant")[n % 2], "content": f"text {n}"} for n in range(81)]
    joined(chat, messages[:12])
    renderings = []
    monkeypatch.setattr(chat, "_render", lambda *arguments: renderings.append(arguments))
    ours = joined(chat, messages)
    assert renderings == []
    monkeypatch.undo()
    assert ours == chat.render(messages)


def test_a_template_that_numbers_its_messages_is_rendered_to_the_end():
    chat = template("{% for m in messages %}[{{ loop.index }} {{ m.role }}]{{ m.content }}\n{% endfor %}")
    messages = [{"role": ("user", "assistant")[n % 2], "content": f"text {n}"} for n in range(20)]
    assert joined(chat, messages) == chat.render(messages)


def test_histories_are_shortened_by_whole_turns():
    turns = ("user", "assistant") * 9
    assert shortened(("system", *turns)) == ("system", *turns[:6])
    assert shortened(turns[:8]) == turns[:6]
    assert shortened(turns[:5]) == turns[:5]
    assert len(shortened(("user", "assistant", "tool", "assistant") * 8)) == 8
