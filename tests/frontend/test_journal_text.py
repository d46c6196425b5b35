"""Values as JSON text: what is written comes back with the same types and bits; anything else is refused, or only
described."""

from __future__ import annotations

import enum
import json
import math
import struct
from dataclasses import dataclass
from typing import Any

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramet.frontend.errors import JournalError
from ramet.frontend.journal_text import DEEPEST, MOST_BITS, Unwritable, described, digest, read, written

LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.sampled_from(["$", "tuple", "\ud800", "-0"])
)
PLAIN = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(st.one_of(st.text(max_size=3), st.just("$"), st.integers(), st.tuples(st.text())), inner),
    ),
    max_leaves=12,
)


def same(one: Any, other: Any) -> bool:
    """Equal, with equal types and bits."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return struct.pack("d", one) == struct.pack("d", other) or (math.isnan(one) and math.isnan(other))
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return same(list(one.items()), list(other.items()))
    return bool(one == other)


@given(PLAIN)
def test_what_is_written_is_read(value):
    text = written(value)
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert text.isascii()
    assert same(read(text), value)
    assert described(value) == text


def test_the_comparison_can_fail():
    assert not same(1, True)
    assert not same(0.0, -0.0)
    assert not same((1,), [1])
    assert not same({"a": 1, "b": 2}, {"b": 2, "a": 1})


class Mood(enum.Enum):
    GOOD = "good"


class Count(int):
    pass


@dataclass
class Point:
    x: int
    at: Any = None


class City(pydantic.BaseModel):
    name: str


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


OBJECTS = [Mood.GOOD, Count(1), Point(1), City(name="x"), {1, 2}, b"x", print, Point, object(), 1 << (MOST_BITS + 1)]


@pytest.mark.parametrize("value", OBJECTS, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("where", [lambda v: v, lambda v: [v], lambda v: {"a": (v,)}])
def test_objects_are_not_written_and_not_read(value, where):
    """Not even from the text that describes them."""
    with pytest.raises(Unwritable):
        written(where(value))
    with pytest.raises(JournalError, match="cannot be read"):
        read(described(where(value)))


def test_depth_is_bounded():
    assert read(written(nested(DEEPEST))) == nested(DEEPEST)
    with pytest.raises(Unwritable, match="containers inside each other"):
        written(nested(DEEPEST + 2))
    assert "deep" in described(nested(DEEPEST + 2))
    with pytest.raises(JournalError):
        read("[" * 5000 + "]" * 5000)
    with pytest.raises(JournalError):
        read("[" * 100_000)


def test_descriptions_tell_values_apart():
    class Two(pydantic.BaseModel):
        name: str

    values = [
        Mood.GOOD,
        Point(1),
        Point(2),
        Point(1, at=Mood.GOOD),
        Point(1, at=[print]),
        City(name="x"),
        City(name="y"),
        Two(name="x"),
        print,
        len,
        Point,
        {1: Point(1)},
        {2: Point(1)},
        (Point(1),),
        [Point(1)],
        object(),
        1,
        1.0,
        "1",
    ]
    assert len({described(value) for value in values}) == len(values)
    assert described(object()) == described(object())
    assert described(Point(1)) == described(Point(1))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "nope",
        '{"$":"object","v":"x"}',
        '{"$":"float","v":"1"}',
        '{"$":"float"}',
        '{"$":"dict","v":[[1]]}',
        '{"$":"dict","v":3}',
        '{"$":"dict","v":[[[],1]]}',
        '{"$":3}',
        '{"$":"tuple","v":7}',
        "1" * 5000,
    ],
)
def test_other_text_is_refused(text):
    with pytest.raises(JournalError):
        read(text)


def test_a_digest_knows_its_columns():
    assert digest("ab", "c") != digest("a", "bc")
    assert digest("a", None) != digest("a", "null")
    assert len(digest()) == 32
