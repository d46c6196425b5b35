"""Regular expressions: the automaton accepts a text if and only if Python's `re.fullmatch` does."""

from __future__ import annotations

import itertools
import json
import pathlib
import re
import warnings
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from ramet.frontend import patterns
from ramet.frontend.errors import ConstraintError
from ramet.runtime.grammar import regex

from .bytewise import accepts

DATA = pathlib.Path(__file__).parents[2] / "data" / "grammar"


def _cases(name: str) -> list[Any]:
    lines = [json.loads(line) for line in (DATA / name).read_text().splitlines()]
    return [pytest.param(case, id=case.get("id", case["pattern"])) for case in lines]


@pytest.mark.parametrize("case", _cases("regexes.jsonl") + _cases("nasty_regexes.jsonl"))
def test_sample(case: dict[str, Any]) -> None:
    if case.get("expect") == "refuse":
        with pytest.raises(ConstraintError, match=r"^regex="):
            regex.translate(case["pattern"])
        return
    made = regex.translate(case["pattern"])
    ask = accepts(made.lark)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = re.compile(case["pattern"])
    assert all(expected.fullmatch(text) for text in case["match"])
    assert not any(expected.fullmatch(text) for text in case["nomatch"])
    assert [text for text in case["match"] if not ask(text)] == []
    assert [text for text in case["nomatch"] if ask(text)] == []
    assert made.shortest is not None and ask(made.shortest) and expected.fullmatch(made.shortest.decode())
    assert made.longest is None or all(len(text.encode()) <= made.longest for text in case["match"])


_ATOMS = [
    "a",
    "b",
    "k",
    "K",
    ".",
    r"\w",
    r"\W",
    r"\d",
    r"\s",
    "[ab]",
    "[^a]",
    "[a-k]",
    r"\n",
    "é",
    "1",
    r"[^\W\d]",
    "\u212a",
    "_",
]
_TEXTS = ["a", "b", "k", "K", "\n", "1", "é", "_", " "]


def _grow(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    quantifier = st.sampled_from(["*", "+", "?", "*?", "+?", "??", "{2}", "{0,2}", "{1,}", "{,1}?"])
    return st.one_of(
        st.lists(inner, min_size=1, max_size=3).map("".join),
        st.lists(inner, min_size=2, max_size=3).map(lambda parts: f"(?:{'|'.join(parts)})"),
        st.tuples(inner, quantifier).map(lambda parts: f"(?:{parts[0]}){parts[1]}"),
        st.tuples(st.sampled_from(["(", "(?:", "(?i:", "(?s:", "(?m:", "(?a:", "(?-i:"]), inner).map(
            lambda p: f"{p[0]}{p[1]})"
        ),
    )


_PLAIN = st.recursive(st.sampled_from(_ATOMS), _grow, max_leaves=7)
_ANCHORED = st.recursive(st.sampled_from([*_ATOMS, "^", "$", r"\b", r"\B", r"\Z", r"\A", ""]), _grow, max_leaves=6)
_FEW = ["".join(text) for size in range(4) for text in itertools.product("ak\n ", repeat=size)]


def _agree(pattern: str, texts: list[str]) -> None:
    expected = re.compile(pattern)
    refused = ""
    try:
        made = regex.translate(pattern)
    except ConstraintError as error:
        refused = str(error)
    assume("depends on the text around it" not in refused)
    if refused:
        assert "no text matches" in refused
        assert not any(expected.fullmatch(text) for text in texts)
        return
    ask = accepts(made.lark)
    for text in texts:
        assert ask(text) == bool(expected.fullmatch(text)), (pattern, text)
    assert made.shortest is not None and expected.fullmatch(made.shortest.decode())


@given(_PLAIN, st.lists(st.text(st.sampled_from(_TEXTS), max_size=5), max_size=30), st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@example(r"(?:(?:a)?(?:b)??)*", ["ab", "ba", "aab"], None)
def test_random_patterns(pattern: str, texts: list[str], data: st.DataObject | None) -> None:
    near = [] if data is None else data.draw(st.lists(st.from_regex(pattern, fullmatch=True), max_size=4))
    near += [text[:at] + text[at + 1 :] for text in near for at in range(min(len(text), 3))]
    near = [text for text in near if len(text) < 40 and not any("\ud800" <= char <= "\udfff" for char in text)]
    _agree(pattern, texts + near + _FEW)


@given(_ANCHORED, st.lists(st.text(st.sampled_from(_TEXTS), max_size=4), max_size=20))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@example(r"^a$\n", ["a\n", "a"])
@example(r"(?:\w|(?:\w|[^\W\d]))", ["a", "7", "-"])
@example(r"(?:\b)(?:\B)?", [])
@example(r"\B", [])
def test_random_patterns_with_anchors(pattern: str, texts: list[str]) -> None:
    _agree(pattern, texts + _FEW)


def test_large_classes_are_written_once() -> None:
    made = regex.translate(r"\w" * 200)
    assert len(made.lark) < 20_000
    assert accepts(made.lark)("é" * 200)


def test_what_becomes_too_large_is_refused() -> None:
    patterns.check("&" * 50_000)
    with pytest.raises(ConstraintError, match=r"^regex='&&&&.*262144 bytes"):
        regex.translate("&" * 50_000)
