"""The total parsers: any text gives a value of the asked shape, the same every time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ramet.examples.parse import chunks, integer, numbered_list


def test_numbered_list_takes_the_first_items():
    text = "Here you go:\n1. Write less code\n2) Test it\n- Review it\n4. Ship it\n"
    assert numbered_list(text, 3) == ["Write less code", "Test it", "Review it"]


def test_too_few_items_become_equal_chunks():
    assert numbered_list("1. one two three four", 2) == ["1. one", "two three four"]


def test_chunks_keep_all_words_in_order():
    assert chunks("a b c d e", 2) == ["a b", "c d e"]
    assert chunks("", 2) == ["(nothing)", "(nothing)"]


def test_integer_takes_the_last_one_in_range():
    assert integer("Of 3 and 5 the sum is 8, not 800.", 0, 99) == 8


@given(text=st.text(), count=st.integers(1, 12))
def test_lists_are_total(text, count):
    for items in (numbered_list(text, count), chunks(text, count)):
        assert len(items) == count
        assert all(items)
    assert numbered_list(text, count) == numbered_list(text, count)


@given(text=st.text(alphabet=st.characters(codec=None)), low=st.integers(-9, 9), width=st.integers(0, 99))
def test_integers_are_total(text, low, width):
    assert low <= integer(text, low, low + width) <= low + width
    assert integer(text, low, low + width) == integer(text, low, low + width)


@given(text=st.text(alphabet=" \n0123456789-", max_size=30))
def test_long_numbers_are_no_trouble(text):
    assert 0 <= integer(text * 200, 0, 9) <= 9
