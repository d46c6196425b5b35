"""Compiling: texts made of symbols that Python compares, sorts and counts where no symbol sees it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

import ramet as rt
from ramet.frontend import compile as compiling
from ramet.frontend.planned import Break, Param, Return
from ramet.frontend.probes import Altered, Probe
from ramet.frontend.replay import Recorder

WAIT = 20.0


def answered(s: rt.State, count: int = 2) -> list[str]:
    """Values that are read, of one generation each."""
    return [branch.gen(name="x", max_tokens=3).get() for branch in s.fork(count)]


def _tests(s: rt.State, a: str, b: str) -> str:
    return "some" if f"{a}{b}" else "none"


def _tests_joined(s: rt.State, a: str, b: str) -> str:
    return "some" if "".join(answered(s)) else "none"


def _greatest(s: rt.State, a: str, b: str) -> str:
    return max([f"{a}1", f"{b}1"])


def _least(s: rt.State, a: str, b: str) -> str:
    return min([f"{a}1", f"{b}1"])


def _sorts(s: rt.State, a: str, b: str) -> str:
    return sorted(f"x{value}" for value in answered(s))[0]


def _sorts_by_length(s: rt.State, a: str, b: str) -> str:
    return sorted((f"x{value}" for value in answered(s)), key=len)[0]


def _longest(s: rt.State, a: str, b: str) -> str:
    return max((f"x{value}" for value in answered(s)), key=len)


def _shortest(s: rt.State, a: str, b: str) -> str:
    return min((f"x{value}" for value in answered(s)), key=len)


def _counts(s: rt.State, a: str, b: str) -> int:
    return len({f"x{value}" for value in answered(s, 3)})


def _once_each(s: rt.State, a: str, b: str) -> str:
    return "\n".join(dict.fromkeys([f"- {value}" for value in answered(s)]))


def _equal(s: rt.State, a: str, b: str) -> bool:
    first, second = (f"x{value}" for value in answered(s))
    return first == second


def _inside(s: rt.State, a: str, b: str) -> str:
    return "yes" if a in "abc" else "no"


def _begins(s: rt.State, a: str, b: str) -> str:
    return "yes" if "abc".startswith(a) else "no"


def _strips(s: rt.State, a: str, b: str) -> str:
    return "|".join(map(str.strip, answered(s)))


UNSEEN: dict[Callable[..., Any], tuple[tuple[str, str], Sequence[str]]] = {  # arguments, answers
    _tests: (("", ""), ["x"]),
    _tests_joined: (("a", "b"), ["", ""]),
    _greatest: (("b", "a"), ["x"]),
    _least: (("b", "a"), ["x"]),
    _sorts: (("a", "b"), ["b", "a"]),
    _sorts_by_length: (("a", "b"), ["bb", "a"]),
    _longest: (("a", "b"), ["b", "aa"]),
    _shortest: (("a", "b"), ["bb", "a"]),
    _counts: (("a", "b"), ["b", "a", "a"]),
    _once_each: (("a", "b"), ["b", "b"]),
    _equal: (("a", "b"), ["b", "b"]),
    _inside: (("a", "b"), ["x"]),
    _begins: (("a", "b"), ["x"]),
    _strips: (("a", "b"), [" hi ", " ho"]),
}


def outcomes(body: Callable[..., Any], args: Sequence[Any], answers: Sequence[str]) -> list[Any]:
    """Results of the program and of its plan."""
    program = rt.function(body)
    plan = program.compile()
    starts = (lambda b: program.using(backend=b).run(*args), lambda b: plan.run(*args, backend=b))
    return [start(Recorder(rt.Mock(list(answers)))).result(WAIT) for start in starts]


@pytest.mark.parametrize("body", UNSEEN, ids=lambda body: body.__name__)
def test_what_no_symbol_sees_is_a_graph_break(body: Callable[..., Any]) -> None:
    plan = rt.function(body).compile()
    assert {found.kind for found in plan.breaks} <= {"differs", "look", "returns"}
    assert not plan.whole
    args, answers = UNSEEN[body]
    expected, found = outcomes(body, args, answers)
    assert expected == found


SEEN_BY_BLANK = (_tests, _tests_joined, _counts, _once_each)


@pytest.mark.parametrize("body", SEEN_BY_BLANK, ids=lambda body: body.__name__)
def test_without_the_blank_trace_such_a_plan_is_whole(body: Callable[..., Any], monkeypatch: Any) -> None:
    """The control."""
    monkeypatch.setattr(compiling._Explorer, "_blanked", lambda self, path, script: path)
    assert rt.function(body).compile().whole


# --- what is right stays whole ---


def _says_empty(s: rt.State, a: str, b: str) -> list[str]:
    s += f"{a}{b}"
    first = s.gen(name="first", max_tokens=2)
    s += a
    branches = s.fork(2)
    for branch in branches:
        branch += f"{a}{b}"
        branch += first
        branch += f"{b}!"
        branch.gen(name="second", max_tokens=2)
    branches.join("concate_and_append")
    s["note"] = f"{a}{b}"
    s += s.value("note")
    chosen = s.select([a, b, f"{a} or {b}"], name="chosen").get()
    return [first.get(), chosen, f"{a}|{b}", s["note"]]


def _orders_by_constants(s: rt.State, a: str, b: str) -> list[str]:
    return sorted([f"2. {a}", f"1. {b}"])


def _record(s: rt.State, a: str, b: str) -> dict[str, Any]:
    count = s.gen(int, name="n", max_tokens=4).get()
    return {"a": [a, (f"{a}{b}", 1.5, None)], "n": count, "b": b}


@pytest.mark.parametrize("body", [_says_empty, _orders_by_constants, _record], ids=lambda body: body.__name__)
def test_what_only_says_texts_stays_whole(body: Callable[..., Any]) -> None:
    assert rt.function(body).compile().whole
    for args in (("a", "b"), ("b", "a"), ("x", "x y")):
        recorded = []
        program = rt.function(body)
        for start in (program.compile().run, program.run):
            recorder = Recorder(rt.Mock(lambda prompt, var, text=args[0]: "12" if var == "n" else text))
            result = start(*args, backend=recorder).result(WAIT)
            recorded.append((result, [op for op in recorder.programs[0].ops if type(op).__name__ != "Close"]))
        assert recorded[0] == recorded[1]


def test_what_returns_something_else_breaks_where_it_returns() -> None:
    def body(s: rt.State, a: str, b: str) -> str:
        s += f"{a}{b}"
        s.gen(name="x", max_tokens=2)
        return "some" if f"{a}{b}" else "none"

    plan = rt.function(body).compile()
    [found] = plan.breaks
    assert (found.kind, len(plan.document.nodes[0].steps)) == ("differs", 2)
    assert found.where.endswith(f":{body.__code__.co_firstlineno + 3}")


def test_a_choice_that_may_not_be_empty_says_nothing() -> None:
    """The language refuses what is empty in the blank trace alone."""

    @rt.function
    def picks(s: rt.State, a: str, b: str) -> str:
        return s.select([f"{a}{b}", f"{b}{a}"]).get()

    plan = picks.compile()
    assert plan.whole
    end = plan.document.nodes[0].end
    assert isinstance(end, Return) and not isinstance(end, Break)


# --- sentinels ---


@pytest.mark.parametrize("rich", [False, True])
def test_a_sentinel_whose_length_is_changed_is_found(rich: bool) -> None:
    probe = Probe(["yes"] if rich else None)
    texts = [probe.text(Param(f"p{number}")) for number in range(40)]
    assert probe.cut("".join(texts)) == tuple(Param(f"p{number}") for number in range(40))
    for text in texts:
        for made in (text[1:], text[:-1], text.replace("\U0010fdf3", "", 1)):
            if made not in (text, ""):
                with pytest.raises(Altered):
                    probe.cut(made)


def test_two_probes_order_and_measure_the_other_way_round() -> None:
    plain, rich = ([probe.text(Param(name)) for name in "abc"] for probe in (Probe(), Probe(["yes"])))
    assert sorted(plain) == plain and sorted(rich) == rich[::-1]
    assert sorted(plain, key=len) == plain and sorted(rich, key=len) == rich[::-1]
    assert all(text.strip() != text for text in rich)
