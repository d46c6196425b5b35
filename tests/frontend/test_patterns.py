"""Patterns as trees: limits and refusals by name, character sets as Python's `re` has them, anchors."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ramet.frontend import charsets, patterns, regular
from ramet.frontend.errors import ConstraintError


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("a(?=b)", "look-ahead"),
        ("(?<!a)b", "look-behind"),
        (r"(a)\1", "back-reference"),
        ("(a)?(?(1)b|c)", "conditional"),
        ("(?>a)", "atomic group"),
        ("a++", "possessive"),
        ("a(b", "is no regular expression: missing )"),
        (r"[^\s\S]+", "no text matches"),
        (r"\ud800", "no text matches"),
        ("(" * 20_000 + "a" + ")" * 20_000, "nest"),
        ("(" * 70 + "a" + ")" * 70, "64 levels"),
        ("(a{1,1000}){1,1000}", "multiply to 1000000 (limit: 10000)"),
        ("a{99999999999999999999}", "repetition count"),
        ("a" * 65_537, "limit: 65536"),
        ("a?" * 10_001, "more than 10000 parts"),
        (r"x*^a", "whether ^ holds depends"),
        (r"a.*\b", r"whether \b holds depends"),
        (r"(a|b$)\n?", "whether $ holds depends"),
    ],
)
def test_what_is_refused_says_why_and_within_a_second(pattern: str, said: str) -> None:
    begun = time.process_time()
    with pytest.raises(ConstraintError) as caught:
        patterns.check(pattern)
    assert said in str(caught.value)
    assert str(caught.value).startswith("regex='")
    assert len(str(caught.value)) < 400
    assert time.process_time() - begun < 1.0  # of this process, however busy the machine is


def test_a_pattern_that_is_no_string_is_refused() -> None:
    with pytest.raises(ConstraintError, match="regex=b'a': must be a string"):
        patterns.check(b"a")  # type: ignore[arg-type]


def test_only_the_planes_that_are_looked_at_have_case() -> None:
    beyond = map(chr, range(0x20000, 0x110000))
    assert not [char for char in beyond if char.lower() != char or char.upper() != char]


@pytest.mark.parametrize("source", [r"\d", r"\w", r"\s"])
@pytest.mark.parametrize("ascii_only", [False, True])
def test_categories_hold_what_re_matches(source: str, ascii_only: bool) -> None:
    found = charsets.category(source, ascii_only)
    pattern = re.compile(source, re.ASCII if ascii_only else 0)
    inside = {code for low, high in found for code in range(low, high + 1)}
    every = [code for low, high in charsets.ALL for code in range(low, high + 1)]
    assert inside == {code for code in every[::7] if pattern.match(chr(code))} | (inside - set(every[::7]))
    assert all(pattern.match(chr(code)) for code in inside)


_RANGES = st.lists(
    st.tuples(st.integers(0, 0x10FFFF), st.integers(0, 300)).map(lambda p: (p[0], min(sum(p), 0x10FFFF)))
)


@given(_RANGES, _RANGES, st.integers(0, 0x10FFFF))
@example([(0, 0xD7FF)], [(0xDFFF, 0xE000)], 0xD800)
def test_sets_of_characters_are_sets(left: list[tuple[int, int]], right: list[tuple[int, int]], code: int) -> None:
    one, other = charsets.of(left), charsets.of(right)
    is_text = not 0xD800 <= code <= 0xDFFF
    in_left = is_text and any(low <= code <= high for low, high in left)
    in_right = is_text and any(low <= code <= high for low, high in right)
    assert charsets.contains(one, code) == in_left
    assert charsets.contains(charsets.union(one, other), code) == (in_left or in_right)
    assert charsets.contains(charsets.intersection(one, other), code) == (in_left and in_right)
    assert charsets.contains(charsets.complement(one), code) == (is_text and not in_left)
    assert charsets.contains(charsets.difference(one, other), code) == (in_left and not in_right)


_CLASS = st.lists(
    st.one_of(
        st.characters(exclude_categories=("Cs",)).map(re.escape),
        st.sampled_from(
            [r"\w", r"\W", r"\d", r"\D", r"\s", r"\S", "a-z", "A-\u017f", "\u0370-\u03ff", "k", "\u212a", "ß", "ſ", "ς"]
        ),
    ),
    min_size=1,
    max_size=4,
).map("".join)


@given(_CLASS, st.booleans(), st.sampled_from([0, re.I, re.A, re.I | re.A]), st.data())
def test_classes_hold_what_re_matches(inner: str, negated: bool, flags: int, data: st.DataObject) -> None:
    source = f"[{'^' * negated}{inner}]"
    expected = re.compile(source, flags)
    interesting = st.sampled_from(
        [*"kKsS_0 \n", "\u212a", "ſ", "ß", "ẞ", "ς", "Σ", "ı", "İ", "µ", "μ", "ǅ", "٣", "\u001c", "é"]
    )
    try:
        node = patterns.parse(source, flags=flags)
    except ConstraintError:  # no text matches
        node = regular.Chars(charsets.NOTHING)
    assert isinstance(node, regular.Chars)
    for char in data.draw(st.lists(interesting | st.characters(exclude_categories=("Cs",)), max_size=30)):
        assert charsets.contains(node.ranges, ord(char)) == bool(expected.fullmatch(char)), (source, flags, char)


@pytest.mark.parametrize(
    ("pattern", "shortest", "longest"),
    [
        ("", b"", 0),
        ("a{2,5}", b"aa", 5),
        ("(ab|c)+", b"c", None),
        ("é|日本", "é".encode(), 6),
        (r"(a{0}b?){3}", b"", 3),
        (r"(|)*", b"", 0),
        (".", b"\0", 4),
        (r"x{10}y*?", b"x" * 10, None),
    ],
)
def test_shortest_and_longest(pattern: str, shortest: bytes, longest: int | None) -> None:
    node = patterns.parse(pattern)
    assert regular.shortest(node, 1000) == shortest
    assert regular.longest(node) == longest


def test_a_shortest_text_beyond_the_limit_is_not_built() -> None:
    assert regular.shortest(patterns.parse("(?:" + "a" * 1000 + "){9999}"), 65_536) is None
