"""What models write that call tools: templates in the manner of each family, their outputs cut at every place."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import pytest

from ramet.frontend import ir
from ramet.frontend.toolcalls import HERMES, LLAMA, MISTRAL, NEMOTRON, Notation
from ramet.runtime.grammar.automaton import HEADER, GrammarCache
from ramet.runtime.grammar.structure import translate
from ramet.runtime.server.call import Chat, Message
from ramet.runtime.server.speech import Hearing, Manner, Speech
from ramet.runtime.server.toolcalls import chat_offer
from ramet.runtime.template import ChatTemplate

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
        },
    },
    {"type": "function", "function": {"name": "clock"}},
]
AUTOMATA = GrammarCache([bytes([value]) for value in range(256)] + [b""], eos=(256,))
TURNS = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
REPLY = "{% if add_generation_prompt %}<|assistant|>{% endif %}"
THINKS = REPLY.replace("<|assistant|>", "<|assistant|><think>\n")
TOLD = "{% if tools %}<|tools|>{{ tools | tojson }}FORM<|end|>{% endif %}"


def template(form: str, *, reply: str = REPLY) -> ChatTemplate:
    """A template that tells of tools in its own words, with `form` for how they are called."""
    return ChatTemplate(TOLD.replace("FORM", form) + TURNS + reply, context=4096)


@dataclass(frozen=True)
class Family:
    """A family's template, the notation that is its own (`native`) or else ours, and an output of its models."""

    form: str
    notation: Notation
    native: bool
    text: str
    thought: str = ""
    content: str = ""
    reply: str = REPLY


ONE, TWO = '{"city": "Zürich {\\"}"}', '{"city": "Oslo", "days": 2}'
JSON_TAGS = (
    f'<tool_call>\n{{"name": "weather", "arguments": {ONE}}}\n</tool_call>\n'
    f'<tool_call>\n{{"name": "weather", "arguments": {TWO}}}\n</tool_call>'
)
JSON_LIST = f'[{{"name": "weather", "arguments": {ONE}}}, {{"name": "weather", "arguments": {TWO}}}]'
FAMILIES = {
    "hermes": Family("<tool_call>{name, arguments}</tool_call>", HERMES, True, f"Well.\n{JSON_TAGS}", content="Well."),
    "qwen3": Family(
        "<tool_call>{name, arguments}</tool_call>{# <think> #}",
        HERMES,
        True,
        f"<think>\nTwo calls?\n</think>\n\n{JSON_TAGS}",
        thought="Two calls?",
    ),
    "qwen3-thinking": Family(
        "<tool_call>{name, arguments}</tool_call>",
        HERMES,
        True,
        f"Two.\n</think>\n\nYes.\n{JSON_TAGS}",
        thought="Two.",
        content="Yes.",
        reply=THINKS,
    ),
    "llama3": Family(
        '{# ipython #}Respond in the format {"name": function, "parameters": dictionary}',
        LLAMA,
        True,
        f'{{"name": "weather", "parameters": {ONE}}}; {{"name": "weather", "parameters": {TWO}}}',
    ),
    "mistral-v3": Family("{{ '[TOOL_CALLS] [' }}", MISTRAL, True, JSON_LIST),
    "mistral-v11": Family("{{ '[TOOL_CALLS]' + 'name' + '[ARGS]' }}", HERMES, False, JSON_TAGS),
    "mistral-v11-bare": Family("{% set name = '' %}{{ '[TOOL_CALLS]' + name }}", HERMES, False, JSON_TAGS),
    "xlam": Family('make calls in an array:\n\n[{"name": "NAME", "arguments": {}}, ...]', MISTRAL, True, JSON_LIST),
    "nemotron": Family(
        '<TOOLCALL>[{{ \'{"name": "f", "arguments": "a"}\' }}]</TOOLCALL>{# <think> #}',
        NEMOTRON,
        True,
        f"<think>\nTwo.\n</think>\n\nYes.\n<TOOLCALL>{JSON_LIST}</TOOLCALL>",
        thought="Two.",
        content="Yes.",
    ),
    "r1-distilled": Family(
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME",
        HERMES,
        False,
        f"Two.\n</think>\n\n{JSON_TAGS}",
        thought="Two.",
        reply=THINKS,
    ),
    "qwen3-coder": Family("<tool_call>\n<function=NAME>\n<parameter=KEY>arguments", HERMES, False, JSON_TAGS),
    "glm-4.5": Family("<tool_call>NAME\n<arg_key>arguments</arg_key>", HERMES, False, JSON_TAGS),
    "llama-pythonic": Family("[func_name1(params_name1=params_value1)]", HERMES, False, JSON_TAGS),
    "phi-4-mini": Family('functools[{"name": NAME, "arguments": ARGUMENTS}]', HERMES, False, JSON_TAGS),
    "granite-3": Family('<|tool_call|>[{"name": "f", "arguments": "a"}]', HERMES, False, JSON_TAGS),
    "kimi-k2": Family("<|tool_call_begin|>functions.NAME:0<|tool_call_argument_begin|>", HERMES, False, JSON_TAGS),
}
families = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


@cache
def hearing_of(family: Family) -> Hearing:
    """How the outputs of the family's models are read."""
    manner = Manner.of(template(family.form, reply=family.reply))
    offer = chat_offer({"tools": TOOLS})
    chat, hearing = manner.hearing(Chat((Message("user", "Weather?"),)), offer, None, {})
    assert chat.tools == offer.tools
    return hearing


def speech_of(family: Family, *pieces: str) -> Speech:
    """What was said in these pieces, of which the last ends it."""
    speech = hearing_of(family).speech()
    for n, piece in enumerate(pieces, 1):
        speech.push(piece, last=n == len(pieces))
    return speech


def told(speech: Speech) -> tuple[str, str, list[tuple[str, str]]]:
    """All that was said: thoughts, content, calls."""
    said = speech.said
    return said.reasoning, said.content, [(call.name, call.arguments) for call in said.calls]


@families
def test_the_notation_is_found_in_the_template(family: Family) -> None:
    form = template(family.form).tool_format
    assert (form.notation, form.native) == (family.notation, family.native)


@families
def test_an_output_is_told_apart_wherever_it_is_cut(family: Family) -> None:
    want = (family.thought, family.content, [("weather", ONE), ("weather", TWO)])
    for at in range(len(family.text) + 1):
        assert told(speech_of(family, family.text[:at], family.text[at:])) == want, at
    assert told(speech_of(family, *family.text, "")) == want


@families
def test_an_output_is_one_that_its_constraint_allows(family: Family) -> None:
    hearing = hearing_of(family)
    held = hearing.constraint
    structure = hearing.format.structure(held) if isinstance(held, ir.Calls) else held
    assert isinstance(structure, ir.Structure), "calls that may be made are held to a structure"
    automaton = AUTOMATA.automaton(HEADER + translate(structure.spec).lark)
    automaton.advance(list(family.text.encode()))
    assert automaton.accepting


@families
def test_a_call_comes_before_its_arguments_are_over(family: Family) -> None:
    speech = hearing_of(family).speech()
    kinds = [part.kind for part in speech.push(family.text[: family.text.index("Oslo")])]
    assert kinds.count("call") == 2 and "content" not in kinds[kinds.index("call") :]
    assert speech.said.calls[1].arguments == '{"city": "'


@families
def test_an_output_that_is_cut_short_is_told_as_far_as_it_goes(family: Family) -> None:
    for at in range(len(family.text)):
        thought, content, calls = told(speech_of(family, family.text[:at]))
        assert family.text.removeprefix("<think>\n").startswith(thought)
        assert all(whole.startswith(arguments) for whole, (_, arguments) in zip((ONE, TWO), calls, strict=False))
        assert not calls or content == family.content


def test_earlier_answers_of_a_thinking_model_are_no_thoughts() -> None:
    manner = Manner.of(template("<tool_call>arguments", reply=THINKS))
    messages = (Message("user", "1+1?"), Message("assistant", "2"), Message("user", "And 1?"))
    chat, _ = manner.hearing(Chat(messages), chat_offer({}), None, {})
    assert [m.content for m in chat.messages] == ["1+1?", "\n</think>\n\n2", "And 1?"]
    told_whole = Message("assistant", "<think>\nEasy.\n</think>\n\n2")
    kept, _ = manner.hearing(Chat((*messages[:1], told_whole, *messages[2:])), chat_offer({}), None, {})
    assert kept.messages[1] == told_whole, "a thought that has its end stays as it was sent"
    open_end = Chat((*messages[:2], messages[2], Message("assistant", "3")), continue_final=True)
    going, _ = manner.hearing(open_end, chat_offer({}), None, {})
    assert [m.content for m in going.messages][1::2] == ["\n</think>\n\n2", "3"], "the last one goes on as it is"
    silent = Manner.of(template("<tool_call>arguments"))
    assert silent.hearing(Chat(messages), chat_offer({}), None, {})[0].messages == messages
