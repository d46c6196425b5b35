"""Compiling: texts made of symbols that Python compares with constants, looks up or counts. No trace shows that, the
bytecode does."""

from __future__ import annotations

import collections
import logging
import operator
import random
import secrets
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

import ramet as rt

WAIT = 20.0

TABLE = {"a/b": "K"}
LOG = logging.getLogger("ramet.tests.compile_looks")
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
