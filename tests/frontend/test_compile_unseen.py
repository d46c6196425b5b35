"""Compiling: texts made of symbols that Python compares, sorts and counts where no symbol sees it."""

from __future__ import annotations

import collections
import logging
import operator
import random
import secrets
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

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


# --- texts that are compared with constants: no trace shows that, the bytecode does ---

TABLE = {"a/b": "K"}
WORDS = "x y"
LOG = logging.getLogger("ramet.tests.compile_unseen")
LOOKS: dict[str, Callable[[str, str], object]] = {
    "compares": lambda a, b: f"{a}{b}" == "ab",
    "compares a sum": lambda a, b: f"{a}{b}" + "!" != "ab!",
    "compares what % makes": lambda a, b: "%s/%s" % (a, b) == "a/b",  # noqa: UP031
    "compares what format makes": lambda a, b: "{}{}".format(a, b) == "ab",  # noqa: UP032
    "compares a variable": lambda a, b: (lambda key: key == "ab")(f"{a}{b}"),
    "compares what join makes": lambda a, b: (lambda key: key == "ab")("".join([a, b])),
    "looks for it in a list": lambda a, b: f"{a}/{b}" in ["a/b", "c"],
    "looks for it in a set": lambda a, b: (lambda key: key in {"a/b", "c"})(f"{a}/{b}"),
    "looks it up": lambda a, b: TABLE[f"{a}/{b}"],
    "looks a variable up": lambda a, b: (lambda key: TABLE[key])(f"{a}/{b}"),
    "gets": lambda a, b: TABLE.get(f"{a}/{b}", "none"),
    "gets a variable": lambda a, b: (lambda key: TABLE.get(key))(f"{a}/{b}"),
    "counts": lambda a, b: ["a/b", "c"].count(f"{a}/{b}"),
    "begins": lambda a, b: "a/b c".startswith(f"{a}/{b}"),
    "finds": lambda a, b: (lambda key: "a/b c".find(key))(f"{a}/{b}"),
    "matches": lambda a, b: matched(f"{a}/{b}"),
    "of a number": lambda a, b: f"{a}{3}" == "a3",
    "compares an attribute": lambda a, b: (lambda box: box.text == "ab")(Box(f"{a}{b}")),
    "compares an attribute further on": lambda a, b: (lambda box: box.text.text == "ab")(Box(Box(f"{a}{b}"))),
    "compares an item": lambda a, b: (lambda texts: texts[0] == "ab")([f"{a}{b}"]),
    "compares a field": lambda a, b: (lambda texts: texts["k"] == "ab")({"k": f"{a}{b}"}),
    "compares what join makes at once": lambda a, b: "".join([a, b]) == "ab",
    "compares what join makes of a generator": lambda a, b: "".join(text for text in (a, b)) == "ab",
    "looks for what join makes": lambda a, b: "".join([a, b]) in ("ab", "c"),
    "gets what join makes": lambda a, b: TABLE.get("/".join([a, b]), "none"),
    "compares what replace makes": lambda a, b: "x".replace("x", a) == "a",
    "compares what a function makes": lambda a, b: glued(a, b) == "ab",
    "compares both sides": lambda a, b: (lambda text: "aa" < text < "b")(f"{a}{b}"),
    "compares what it names": lambda a, b: (text := f"{a}{b}") == "ab" or text,
    "compares lists": lambda a, b: [f"{a}{b}"] == ["ab"],
    "compares dicts": lambda a, b: (lambda texts: texts == {"k": "ab"})({"k": f"{a}{b}"}),
    "compares records": lambda a, b: Pair(f"{a}{b}", 1) == Pair("ab", 1),
    "compares by a function": lambda a, b: operator.eq(f"{a}{b}", "ab"),
    "matches a tuple": lambda a, b: matched_pair((f"{a}{b}", "x")),
    "looks for a constant": lambda a, b: "ab" in [f"{a}{b}"],
    "looks for a constant among keys": lambda a, b: (lambda kept: "ab" in kept)({f"{a}{b}": 1}),
    "gets a constant": lambda a, b: {f"{a}{b}": 1}.get("ab", 0),
    "finds a constant": lambda a, b: [f"{a}{b}", "ab"].index("ab"),
    "counts with a constant": lambda a, b: len({f"{a}{b}", "ab"}),
    "adds to constants": lambda a, b: (lambda kept: kept.add(f"{a}{b}") or len(kept))({"ab"}),
    "keeps under it, beside constants": lambda a, b: kept_under({"ab": 1}, f"{a}{b}"),
    "intersects": lambda a, b: len({f"{a}{b}"} & {"ab"}),
    "unites with constants": lambda a, b: len({f"{a}{b}"}.union(["ab"])),
    "makes a set of it and constants": lambda a, b: len(set([f"{a}{b}", "ab"])),  # noqa: C405
    "makes a set of a list": lambda a, b: (lambda texts: len(set(texts)))([f"{a}{b}", "ab"]),
    "counts it and constants": lambda a, b: len(collections.Counter([f"{a}{b}", "ab"])),
    "compares the first of a generator": lambda a, b: any(text == "ab" for text in [f"{a}{b}"]),
    "compares what a pattern names": lambda a, b: guarded(a, b),
    "unpacks": lambda a, b: len([*pieces(a, b)]),
    "makes a tuple": lambda a, b: tuple(f"{a}{b}") == ("a", "b"),
    "compares the next": lambda a, b: next(iter([f"{a}{b}"])) == "ab",
    "compares the greatest": lambda a, b: max([f"{a}{b}"], default="") == "ab",
    "compares what it pops": lambda a, b: (lambda kept: kept.pop("k") == "ab")({"k": f"{a}{b}"}),
    "compares what it gets": lambda a, b: (lambda kept: kept.get("k") == "ab")({"k": f"{a}{b}"}),
    "compares an item of a variable": lambda a, b: (lambda texts, at: texts[at] == "ab")([f"{a}{b}"], 0),
    "looks for a constant among values": lambda a, b: (lambda kept: "ab" in kept.values())({"k": f"{a}{b}"}),
    "makes bytes of an argument": lambda a, b: bytes(a, "utf-8") == b"a",
    "makes bytes": lambda a, b: bytes(f"{a}{b}", "utf-8") == b"ab",
    "makes a number": lambda a, b: number_of(a, b),
    "hashes": lambda a, b: hash(f"{a}{b}") % 2,
    "gets an attribute": lambda a, b: getattr(Box("x"), f"{a}{b}", "none"),
}


class Box:
    def __init__(self, text: Any) -> None:
        self.text = text


class Pair(NamedTuple):
    text: str
    number: int


def glued(a: str, b: str) -> str:
    return f"{a}{b}"


def kept_under(kept: dict[str, int], key: str) -> int:
    kept[key] = 2
    return kept["ab"]


def guarded(a: str, b: str) -> int:
    match f"{a}{b}":
        case text if text == "ab":
            return 1
    return 2


def pieces(a: str, b: str) -> tuple[str, ...]:
    try:
        first, second = f"{a}{b}"
    except ValueError:
        return ()
    return first, second


def number_of(a: str, b: str) -> int:
    try:
        return int(f"{a}{b}")
    except ValueError:
        return -1


def matched_pair(pair: tuple[str, str]) -> int:
    match pair:
        case ("ab", _):
            return 1
    return 2


def matched(text: str) -> int:
    match text:
        case "a/b":
            return 1
    return 2


@pytest.mark.parametrize("look", LOOKS)
def test_a_text_made_of_symbols_that_is_compared_is_a_look(look: str) -> None:
    @rt.function
    def looks(s: rt.State, a: str, b: str) -> str:
        s += "before"
        s.gen(name="x", max_tokens=2)
        return f"{LOOKS[look](a, b)}"

    [found] = looks.compile().breaks
    assert found.kind == "look"
    assert found.reason.startswith("Python ") and "a text that only a run knows" in found.reason


def _awaits_a_text(s: rt.State, a: str, b: str) -> Any:
    async def glued_later() -> str:
        return f"{a}{b}"

    async def body() -> bool:
        return await glued_later() == "ab"

    return body()


def _reads_a_variable(s: rt.State, a: str, b: str) -> Any:
    s["note"] = f"{a}{b}"
    return s["note"] == "ab"


@pytest.mark.parametrize("body", [_awaits_a_text, _reads_a_variable], ids=lambda body: body.__name__)
def test_a_text_that_is_compared_where_it_is_read_is_a_look(body: Callable[..., Any]) -> None:
    async def awaiting(s: rt.State, a: str, b: str) -> Any:
        return await body(s, a, b)

    [found] = rt.function(awaiting if body is _awaits_a_text else body).compile().breaks
    assert found.kind == "look" and found.reason.startswith("Python compares a text that only a run knows")


RIGHT: dict[str, Callable[[str, str], object]] = {
    "a template": lambda a, b: "Say [q]!".replace("[q]", f"{a}{b}"),
    "a default": lambda a, b: TABLE.get("a/c", f"{a}{b}"),
    "a value": lambda a, b: {"k": f"{a}{b}"}["k"],
    "kept under itself": lambda a, b: {f"{a}-1": "x", f"{a}-2": "y"}.get(f"{a}-2"),
    "found under itself": lambda a, b: (lambda kept, key: kept[key])({f"{a}-1": "x"}, f"{a}-1"),
    "other variables": lambda a, b: (lambda key, kind: key if kind == "x" else "")(f"{a}{b}", "x"),
    "a split constant": lambda a, b: ", ".join(f"{word} {a}" for word in ["x", "y"]),
    "a log": lambda a, b: LOG.debug("%s of %s", f"{a}{b}", a) or "said",
    "no text": lambda a, b: f"{a}{b}" if a is not None else "",
    "another attribute": lambda a, b: (lambda box: box.kind == "x" and box.text)(Kinded("x", f"{a}{b}")),
    "another field": lambda a, b: (lambda kept: kept["kind"] == "x" and kept["text"])({"kind": "x", "text": f"{a}{b}"}),
    "an item": lambda a, b: (lambda texts, at: texts[at])([f"{a}{b}", "x"], 0),
    "counted items": lambda a, b: (lambda texts: len(texts) == 2 and texts[1])(["x", f"{a}{b}"]),
    "what a function makes": lambda a, b: ", ".join([glued(a, b), "x"]),
    "kept by a loop": lambda a, b: (lambda kept, key: kept.setdefault(key, key) + kept[key])({}, f"{a}-1"),
    "said by a method": lambda a, b: Box(f"{a}{b}").text + "!",
    "another arm": lambda a, b: f"{a}{b}" if b is not None else (a == "x"),
    "another field that it gets": lambda a, b: (lambda kept: kept.get("x") == "y")({"x": "x", "k": f"{a}{b}"}),
    "a set of its own": lambda a, b: len({f"{a}-1", f"{a}-2"}),
    "a loop": lambda a, b: "".join(text + kind for text, kind in [(f"{a}{b}", "x")] if kind == "x"),
    "seeded chance": lambda a, b: f"{a}{random.Random(1).random()}",
}


class Kinded:
    def __init__(self, kind: str, text: str) -> None:
        self.kind, self.text = kind, text


@pytest.mark.parametrize("use", RIGHT)
def test_what_looks_at_other_things_stays_whole(use: str, caplog: pytest.LogCaptureFixture) -> None:
    @rt.function
    def uses(s: rt.State, a: str, b: str) -> str:
        s += f"{RIGHT[use](a, b)}"
        return s.gen(name="x", max_tokens=2).get()

    with caplog.at_level(logging.DEBUG, LOG.name):
        plan = uses.compile()
    assert plan.whole, plan.breaks
    mock, other = rt.Mock("v"), rt.Mock("v")
    plan.run("a", "b", backend=mock).result(WAIT)
    uses.using(backend=other).run("a", "b").result(WAIT)
    assert mock.prompts == other.prompts


@pytest.mark.parametrize(
    "asks", [lambda: random.choice("xy"), lambda: random.random() < 2.0, lambda: secrets.randbelow(2)]
)
def test_chance_is_a_graph_break_also_where_it_falls_alike(asks: Callable[[], object]) -> None:
    @rt.function
    def chooses(s: rt.State) -> str:
        return f"{asks()}"

    [found] = chooses.compile().breaks
    assert found.kind == "differs" and "in every run" in found.reason


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
