"""Choices: exactly the given texts, prefixes of one another included."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.frontend.errors import ConstraintError
from ramet.runtime.grammar import choices

from .bytewise import accepts

_TEXT = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=6)


def test_a_prefix_of_another_can_be_chosen_and_passed() -> None:
    ask = accepts(choices.translate(["to", "tomorrow", "today"]).lark)
    assert all(map(ask, ["to", "tomorrow", "today"]))
    assert not any(map(ask, ["", "t", "tod", "tomorro", "todayy"]))


@given(st.lists(_TEXT | st.text('ab/\\"\n', min_size=1, max_size=3), min_size=1, max_size=8, unique=True), _TEXT)
@settings(max_examples=60, deadline=None)
def test_exactly_the_choices(texts: list[str], other: str) -> None:
    made = choices.translate(texts)
    ask = accepts(made.lark)
    assert all(map(ask, texts))
    near = [text + "a" for text in texts] + [text[:-1] for text in texts] + [other]
    assert all(ask(text) == (text in texts) for text in near)
    assert made.longest == max(len(text.encode()) for text in texts)
    assert len(made.shortest or b"") == min(len(text.encode()) for text in texts)


def test_ten_thousand_choices_are_taken() -> None:
    made = choices.translate([f"{number:04d}" for number in range(10_000)])
    ask = accepts(made.lark)
    assert ask("9999") and ask("0000") and not ask("10000")


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ([], "choices: none are given"),
        (["a", ""], r"choices\[1\]='': must be a non-empty string"),
        (["a", 1], r"choices\[1\]=1: must be a non-empty string"),
        (["a", "b", "a"], r"choices\[2\]='a': is given twice"),
        (["\ud800"], r"choices\[0\].*lone surrogate"),
        ([str(number) for number in range(10_001)], "choices: 10001 are given"),
        (["a" * 70_000], "choices: 70000 bytes"),
    ],
)
def test_what_is_refused_says_why(texts: list[str], said: str) -> None:
    with pytest.raises(ConstraintError, match=f"^{said}"):
        choices.translate(texts)
