"""What a graph break says: the user's names, and nothing of what a trace puts in the place of arguments and values."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ramet as rt
from ramet.frontend import compile as compiling
from ramet.frontend.planned import Break, BreakKind, Param, Use
from ramet.frontend.probes import Probe
from ramet.frontend.tracing import Trace

PRIVATE = re.compile("[\U00100000-\U0010fdff]|\\\\U0010|(?<![\\w.])0(\\.b?\\d+)+")
WAIT = 20.0


def plain(reason: str) -> bool:
    """No sentinel, quoted or not, and no operation's id."""
    return PRIVATE.search(reason) is None


class Odd:
    def __init__(self, text: object) -> None:
        self.text = text


@dataclasses.dataclass
class Computes:
    text: str

    def __post_init__(self) -> None:
        self.text = self.text + "!"


@rt.function
def inner(s: rt.State, text: str) -> str:
    return s.gen(max_tokens=1).get()


def _said(s: rt.State, question: str) -> str:
    s += question
    return s.gen(name="answer", max_tokens=1).get()


def _look(s: rt.State, question: str) -> Any:
    return _said(s, question).strip()


def _look_at_argument(s: rt.State, question: str) -> Any:
    return question.split()


def _look_unnamed(s: rt.State, question: str) -> Any:
    s += question
    return len(s.gen(max_tokens=1).get())


def _look_typed(s: rt.State, question: str) -> Any:
    s += question
    return s.gen(int, name="answer").get() + 1


def _look_json(s: rt.State, question: str) -> Any:
    return json.dumps({"q": question})


def _look_option(s: rt.State, question: str) -> Any:
    return s.gen(regex="a" + question).get()


def _look_stop(s: rt.State, question: str) -> Any:
    return s.gen(stop=[f"{_said(s, question)}\n"]).get()


def _look_pattern(s: rt.State, question: str) -> Any:
    return re.match("x", _said(s, question))


def _host(s: rt.State, question: str) -> Any:
    return s.call(len, _said(s, question)).get()


def _wait(s: rt.State, question: str) -> Any:
    value = s.gen(name="answer", max_tokens=1)
    return value.done


def _program(s: rt.State, question: str) -> Any:
    return inner(question).result()


def _raises(s: rt.State, question: str) -> Any:
    raise ValueError(f"no answer to {question}, but {_said(s, question)}")


def _raises_long(s: rt.State, question: str) -> Any:
    raise ValueError("a" * 190 + _said(s, question) * 20)


def _raises_quoted(s: rt.State, question: str) -> Any:
    raise KeyError(question)


def _raises_in_list(s: rt.State, question: str) -> Any:
    raise ValueError([str.__add__("<", question)])


def _raises_unnamed(s: rt.State, question: str) -> Any:
    raise ValueError(f"not {s.select(['a', 'b']).get()}") from None


def _raises_own(s: rt.State, question: str) -> Any:
    s.role(question)


def _unknown(s: rt.State, question: str) -> Any:
    return s[question + "x"]


def _returns(s: rt.State, question: str) -> Any:
    return Odd(_said(s, question))


def _returns_computed(s: rt.State, question: str) -> Any:
    return Computes(_said(s, question))


def _returns_cut(s: rt.State, question: str) -> Any:
    return "".join(reversed([*("a" + question)]))


def _differs(s: rt.State, question: str) -> Any:
    s += bytes(question + "a", "utf-8").decode().title()
    return s.gen(name="answer", max_tokens=1).get()


def _changes(s: rt.State, question: str) -> Any:
    s += str.__getitem__(question + "abc", slice(None, None, -1))
    return s.gen(name="answer", max_tokens=1).get()


def _limit(s: rt.State, question: str) -> Any:
    while s.gen(bool, name="more").get():
        s += question
    return "done"


def _feature(s: rt.State, question: str) -> Any:
    s += question
    with s.var_scope("x"):
        s += "a"
    return s["x"]


BODIES: list[Callable[..., Any]] = [
    _look, _look_at_argument, _look_unnamed, _look_typed, _look_json, _look_option, _look_stop, _look_pattern, _host,
    _wait, _program, _raises, _raises_long, _raises_quoted, _raises_in_list, _raises_unnamed, _raises_own, _unknown,
    _returns, _returns_computed, _returns_cut, _differs, _changes, _limit, _feature,
]  # fmt: skip


def reasons(body: Callable[..., Any]) -> list[Break]:
    return rt.function(body).compile(max_paths=3).breaks


@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.__name__)
def test_a_reason_has_no_sentinels(body: Callable[..., Any]) -> None:
    found = reasons(body)
    assert found
    for each in found:
        assert plain(each.reason), each.reason.encode("unicode_escape")
        assert each.where.startswith("test_compile_reasons.py:")


def test_the_bodies_end_in_every_way() -> None:
    kinds = {each.kind for body in BODIES for each in reasons(body)}
    assert kinds == set(get_args(BreakKind))


@pytest.mark.parametrize("body", [_raises, _raises_quoted, _raises_in_list, _look_unnamed])
def test_without_the_rule_a_reason_tells_of_sentinels(body: Callable[..., Any], monkeypatch: Any) -> None:
    """The control: the one function that makes reasons readable leaves them as they are."""
    monkeypatch.setattr(Trace, "readable", lambda self, text: text)
    assert not all(plain(each.reason) for each in reasons(body))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (_raises, "the body raises ValueError: no answer to {question}, but {answer}"),
        (_raises_quoted, "the body raises KeyError: {question}"),
        (_raises_in_list, "the body raises ValueError: ['<{question}']"),
        (_look, "Python calls strip() of the value of answer"),
        (_look_at_argument, "Python calls split() of the argument 'question'"),
        (_look_typed, "Python computes with the value of answer"),
    ],
)
def test_a_reason_has_the_users_names(body: Callable[..., Any], said: str) -> None:
    [found] = reasons(body)
    assert found.reason == said


def test_a_value_without_a_name_is_called_by_its_line() -> None:
    [found] = reasons(_look_unnamed)
    assert re.fullmatch(
        r"Python \w+( \w+\(\))?( of| at)? the value of the call at test_compile_reasons\.py:\d+", found.reason
    )


WORDS = st.text(st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs"]), max_size=20)


@settings(max_examples=50)
@given(WORDS, WORDS, st.integers(0, 60), st.integers(0, 60), st.booleans())
def test_any_piece_of_a_sentinel_is_made_readable(a: str, b: str, begin: int, end: int, rich: bool) -> None:
    """Cut anywhere, quoted or not: nothing private is left."""
    probe = Probe(["yes", "no"] if rich else None)
    text = a + probe.text(Param("question")) + b + probe.text(Use("0.1")) + a
    for made in (text, repr(text), text[begin:], text[: max(len(text) - end, 0)]):
        shown = probe.readable(made, lambda part: part.name if isinstance(part, Param) else "answer")
        assert re.search("[\U00100000-\U0010fdff]|\\\\U0010fd", shown) is None
    assert probe.readable(text, lambda part: "x") == f"{a}{{x}}{b}{{x}}{a}"


def test_messages_are_short() -> None:
    [found] = reasons(_raises_long)
    assert len(found.reason) < 260
    assert compiling._short("a" * 500).endswith("...")


def _stripped(values: list[str]) -> list[str]:
    return [value.strip() for value in values]


def _helped(s: rt.State, question: str) -> list[str]:
    return _stripped([_said(s, question)])


def _comprehended(s: rt.State, question: str) -> list[str]:
    return [value.strip() for value in [_said(s, question)]]


def test_the_caller_is_named_where_it_is_another_line():
    """A comprehension has a frame of its own in some Pythons: its line is not told twice."""
    (helped,), (comprehended,) = (rt.function(body).compile().breaks for body in (_helped, _comprehended))
    line = _helped.__code__.co_firstlineno + 1
    assert helped.reason.endswith(f"(called from test_compile_reasons.py:{line})") and str(line) not in helped.where
    assert "called from" not in comprehended.reason
