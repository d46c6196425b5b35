"""R3: a chat template comes from the operator or the model at start, runs in a sandbox, bounded in time and size.

Positive controls: mutants of the product without one bound, under which the same check fails. What explodes is small
there, and the limit with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from jinja2.exceptions import TemplateError

from ramet.frontend.errors import ModelError
from ramet.runtime import meter, sandbox, template
from ramet.runtime.server import forms, sampling
from ramet.runtime.template import ChatTemplate

from ..server.serving import WAIT, serving
from .mutation import Mutant, changed, without_bookings, without_guards
from .templates import ESCAPES, SAYS, SLOW, bombs, rendered, stopped

SMALL = 1 << 15  # characters that a rendering may build in these tests


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter, "BUILT", SMALL)


# --- size


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", bombs(real=False))
def test_what_explodes_is_stopped_before_it_does(name: str) -> None:
    assert rendered(sandbox, bombs(real=False)[name]) == "bounded"


@pytest.mark.nightly
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", bombs(real=True))
def test_gigabytes_are_stopped_before_they_take_memory(name: str) -> None:
    assert stopped(sandbox, bombs(real=True)[name])


@pytest.mark.nightly
@pytest.mark.parametrize("name", bombs(real=True))
def test_with_the_limit_of_every_day_too(name: str) -> None:
    with pytest.raises(ModelError, match=r"takes no conversation|to render: it is refused|renders more than"):
        ChatTemplate(bombs(real=True)[name] + SAYS, context=8192)


@pytest.mark.usefixtures("small")
def test_the_start_says_why() -> None:
    with pytest.raises(ModelError, match=r"takes no conversation .*may not build more than 32768 characters"):
        ChatTemplate(bombs(real=False)["plus"] + SAYS, context=8192)
    assert ChatTemplate(SAYS, context=8192).exact


# What a mutant does not do any more, and a bomb that then goes off (or is stopped too late).
NEEDED = {
    "spend(elements(left) * times)": "times",
    "afford(len(left) * (1 + letters(right)))": "percent",
    "spend(elements(left) + elements(right))": "plus",
    "afford(letters(args[at]))": "a list in a text",
    "afford(len(text)": "one replacement",
    "afford(sum(map(letters, args))": "one join",
    "afford((1 + letters(args[0]))": "lines and indents",
    "spend(elements(result))": "many texts",
    "afford(letters(value))": "a list that is shown",
    "spend(sum(map(len, known)))": "block",
    "spend(elements(value))": "nested lists that nobody shows",
    "spend(sum(map(letters, parts)))": "tilde",
    "spend(len(part)": "one slice after the other",
    "call_binop: numbers and operator": "numbers",
    "call_binop: operator == '**'": "one power",
    "call_binop: re.search": "one width",
    "call: any(": "one range",
    "_before: any(": "width of format",
}
ELSEWHERE = ("__setitem__", "times > _LIMIT", "> _SOURCE")  # below; the second only says sooner what the meter would


def loosened() -> list[Mutant]:
    every = [*without_bookings(sandbox), *without_guards(sandbox)]
    return [mutant for mutant in every if not any(part in mutant.name for part in ELSEWHERE)]


def test_every_bound_has_its_control() -> None:
    names = [mutant.name for mutant in loosened()]
    assert len(names) == len(NEEDED)
    assert all(sum(part in name for name in names) == 1 for part in NEEDED)
    small = bombs(real=False)
    assert all(bomb in small for bomb in NEEDED.values())


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("part", NEEDED)
def test_control_without_a_bound_a_bomb_goes_off(part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (mutant,) = (mutant for mutant in loosened() if part in mutant.name)
    bomb = bombs(real=False)[NEEDED[part]]
    assert stopped(sandbox, bomb)
    assert not stopped(mutant.load(tmp_path, monkeypatch), bomb)


LONG = "{% for i in range(600) %}{{ 'long text' }}{% endfor %}" + SAYS


def test_more_than_four_times_the_context_is_refused_and_less_is_not() -> None:
    with pytest.raises(ModelError, match="renders more than 4096 characters: it is refused"):
        ChatTemplate(LONG, context=1024)
    assert ChatTemplate(LONG, context=4096).edge((), "user", "end")  # the control: a larger context takes it


def test_a_long_source_is_refused_and_deep_ones_are_errors_of_ours() -> None:
    for source in (
        SAYS + " " * (1 << 20),
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "{% for a in [1] %}" * 30 + "{% endfor %}" * 30,
        "{{ " + "-" * 20_000 + "1 }}",
        "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
        "{{ " + "[" * 300 + "]" * 300 + " }}",
    ):
        with pytest.raises(ModelError, match=r"does not compile|characters; at most"):
            ChatTemplate(source + SAYS, context=1024)


# --- time


def seconds(monkeypatch: pytest.MonkeyPatch, limit: float) -> None:
    assert meter.SECONDS == template.SECONDS == 2.0
    for module in (meter, template):
        monkeypatch.setattr(module, "SECONDS", limit)


@pytest.mark.parametrize("name", SLOW)
def test_what_takes_too_long_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds(monkeypatch, 0.1)
    with pytest.raises(ModelError, match="to render: it is refused"):
        ChatTemplate(SLOW[name] + SAYS, context=1024)


ONE_LOOP = "{% for i in range(90000) %}{% endfor %}"  # silent, and longer than the limit below


def test_a_rendering_of_later_is_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A template may be slow with roles that no sample has."""
    chat = ChatTemplate("{% if messages | length > 9 %}" + ONE_LOOP + "{% endif %}" + SAYS, context=1024)
    messages = [{"role": "user", "content": "Hi"}] * 10
    chat.render(messages)  # the control: within two seconds it is done
    seconds(monkeypatch, 0.001)
    with pytest.raises(ModelError, match="to render: it is refused"):
        chat.render(messages)


def test_control_without_the_clock_the_slow_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds(monkeypatch, 0.001)
    with pytest.raises(ModelError, match="to render: it is refused"):
        ChatTemplate(ONE_LOOP + SAYS, context=1024)
    seconds_off = [(meter.Meter, "check", lambda self: None), (ChatTemplate, "_watch", lambda self, work: work())]
    for place, name, work in seconds_off:
        monkeypatch.setattr(place, name, work)
    monkeypatch.setattr(template, "SECONDS", 60.0)
    ChatTemplate("{% for i in range(900) %}{% endfor %}" + SAYS, context=1024)


# --- the sandbox


@pytest.mark.parametrize("name", ESCAPES)
def test_there_is_no_way_out(name: str) -> None:
    assert not out_of_the(sandbox, ESCAPES[name])


def out_of_the(module: Any, source: str) -> bool:
    """Whether a template changes what it is given or a class, or shows something of Python's. What is not there renders
    as nothing, which is fine."""
    if rendered(module, source) == "changed" or (rendered(module, source) == "accepted" and "set n.__" in source):
        return True
    try:
        text = "".join(module.compile_template(source).generate(messages=[{"role": "user", "content": "Hi"}]))
    except (ModelError, TemplateError, TypeError):
        return False
    return any(word in text for word in ("<class", "<module", "<function", "<code", "<frame", "object at", "__name__"))


WEAKER = {  # what is taken from the sandbox, and an escape that then comes through
    "no sandbox": (
        "class _Sandbox(ImmutableSandboxedEnvironment):",
        "class _Sandbox(jinja2.Environment):",
        "globals of a function",
    ),
    "a sandbox in which lists can change": (
        "class _Sandbox(ImmutableSandboxedEnvironment):",
        "import jinja2.sandbox\n\n\nclass _Sandbox(jinja2.sandbox.SandboxedEnvironment):",
        "appending",
    ),
    "namespaces that take any name": ('if name.startswith("_"):', 'if name == "":', "namespace's class"),
}


@pytest.mark.parametrize("name", WEAKER)
def test_control_a_weaker_sandbox_lets_something_out(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new, escape = WEAKER[name]
    mutant = changed(sandbox, name, old, new).load(tmp_path, monkeypatch)
    assert out_of_the(sandbox, ESCAPES[escape]) is False
    assert out_of_the(mutant, ESCAPES[escape]) is True


# --- requests

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "one"}], "max_tokens": 1, "temperature": 0}
OTHER = "{% for m in messages %}{{ m.content }}{% endfor %}{{ cycler.__init__.__globals__.os.popen('id').read() }}"
BODIES = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"model": "tiny", "prompt": "one", "max_tokens": 1},
    "/generate": {"text": "one", "sampling_params": {"max_new_tokens": 1}},
    "/tokenize": {"messages": [{"role": "user", "content": "one"}]},
}
KWARGS = {  # what a client writes into `chat_template_kwargs`
    "a template": {"chat_template": OTHER},
    "messages": {"messages": [{"role": "system", "content": "obey"}]},
    "the prompt's end": {"add_generation_prompt": False},
    "tools": {"tools": [{"name": "x"}]},
    "a name of ours": {"bos_token": "<|im_end|>"},
    "a nested value": {"enable_thinking": {"a": [1]}},
    "a text": {"enable_thinking": "{{ 7 * 7 }}"},
    "a dunder": {"__class__": 1},
    "a list": ["enable_thinking"],
    "many": {f"x{i}": True for i in range(1000)},
}


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with serving() as served, httpx.Client(base_url=served.url, timeout=WAIT) as client:
        yield client


def taken(http: httpx.Client, path: str, fields: dict[str, Any]) -> bool:
    """Whether a request with these fields is carried out."""
    answer = http.post(path, json={**BODIES[path], **fields})
    assert answer.status_code in (200, 400), answer.text
    return answer.status_code == 200


@pytest.mark.model
@pytest.mark.parametrize("path", BODIES)
def test_a_request_cannot_send_a_template(http: httpx.Client, path: str) -> None:
    assert taken(http, path, {})
    for value in (OTHER, "chatml", "/etc/passwd", {"a": 1}, ["x"]):
        assert not taken(http, path, {"chat_template": value})


@pytest.mark.model
@pytest.mark.parametrize("name", KWARGS)
def test_template_arguments_are_an_allow_list(http: httpx.Client, name: str) -> None:
    assert not taken(http, "/v1/chat/completions", {"chat_template_kwargs": KWARGS[name]})


@pytest.mark.model
def test_switches_that_are_known_pass(http: httpx.Client) -> None:
    for fields in ({"enable_thinking": False}, {}, None):
        assert taken(http, "/v1/chat/completions", {"chat_template_kwargs": fields})


@pytest.mark.model
def test_control_without_the_lists_requests_bring_templates(
    http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    offered = {name: why for name, why in sampling._UNOFFERED.items() if name != "chat_template"}
    monkeypatch.setattr(sampling, "_UNOFFERED", offered)
    assert taken(http, "/v1/chat/completions", {"chat_template": OTHER})
    assert taken(http, "/generate", {"chat_template": OTHER})
    monkeypatch.setattr(forms, "SWITCHES", frozenset(KWARGS["many"]))
    assert taken(http, "/v1/chat/completions", {"chat_template_kwargs": dict.fromkeys(KWARGS["many"], False)})


@pytest.mark.model
def test_what_is_rendered_is_the_servers_own_template(http: httpx.Client) -> None:
    """Contents never reach Jinja, whatever they look like."""
    for content in (OTHER, "{{ 7 * 7 }}", "{% raw %}", "{# x #}"):
        answer = http.post("/tokenize", json={"messages": [{"role": "user", "content": content}]})
        text = http.post("/detokenize", json={"tokens": answer.json()["tokens"]}).json()["text"]
        assert content in text


def compilations(http: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Sources that are compiled because of requests: chats of several shapes, with tools and without."""
    found: list[str] = []
    inner = sandbox.compile_template
    for module in (sandbox, template):
        monkeypatch.setattr(module, "compile_template", lambda source: found.append(source) or inner(source))
    tool = {"type": "function", "function": {"name": "look", "description": OTHER}}
    for n in range(3):
        messages = [{"role": "system", "content": f"{n}"}, *CHAT["messages"] * (2 * n + 1)]
        assert taken(http, "/v1/chat/completions", {"messages": messages})
        assert taken(http, "/v1/chat/completions", {"messages": messages, "tools": [tool] * (n > 0)})
    return found


@pytest.mark.model
def test_the_template_is_compiled_once(http: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    assert compilations(http, monkeypatch) == []
    edge = ChatTemplate.edge  # the control: a template that is made anew for each edge

    def anew(self: ChatTemplate, *args: Any) -> str:
        return edge(ChatTemplate(self.source, context=1024, names=("<|im_start|>", "<|im_end|>")), *args)

    monkeypatch.setattr(ChatTemplate, "edge", anew)
    assert compilations(http, monkeypatch) != []
