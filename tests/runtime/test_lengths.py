"""What call sites are remembered for: which operations are one site, quantiles, and bounds of what is kept."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramet.runtime.lengths import DEFAULT, SURE, VALUE, Learned, Lengths, site_of


def test_branches_of_a_fork_and_runs_of_a_function_are_one_site() -> None:
    assert site_of("judge", "0.1.b3.2.b11.0") == site_of("judge", "0.1.b0.2.b2.0") == ("judge", "0.1.b.2.b.0")
    assert site_of("judge", "0.1") != site_of("judge", "0.2")
    assert site_of("judge", "0.1") != site_of("write", "0.1")


def test_a_high_quantile_of_the_last_lengths() -> None:
    lengths, site = Lengths(window=100), ("f", "0.1")
    assert lengths.typical(site) is None
    for n in range(1, 101):
        lengths.add(site, n)
    assert lengths.typical(site) == 91
    for _ in range(100):
        lengths.add(site, 3)
    assert lengths.typical(site) == 4


@given(st.lists(st.integers(0, 500), min_size=1, max_size=64))
def test_nine_of_ten_are_not_longer(seen: list[int]) -> None:
    lengths = Lengths()
    for length in seen:
        lengths.add(("f", "0.1"), length)
    typical = lengths.typical(("f", "0.1"))
    assert typical is not None
    assert sum(length > typical for length in seen) <= 0.1 * len(seen) + 0.5
    assert typical <= max(seen) + 1


def test_the_site_that_was_told_of_least_recently_is_forgotten() -> None:
    lengths = Lengths(sites=3)
    for name in "abcad":
        lengths.add((name, "0"), 7)
    assert len(lengths) == 3
    assert lengths.typical(("b", "0")) is None
    assert lengths.typical(("a", "0")) == 8


@pytest.mark.parametrize(("limit", "seen", "expected"), [(None, 0, DEFAULT), (None, 1, 21), (200, SURE - 1, 200)])
def test_few_lengths_count_for_less_than_a_limit(limit: int | None, seen: int, expected: int) -> None:
    learned, site = Learned(), ("f", "0.1")
    for _ in range(seen):
        learned.calls.add(site, 20)
    assert learned.call(site, limit or 400, limit) == expected


def test_many_lengths_count_for_more_than_a_limit_where_programs_have_names() -> None:
    learned = Learned()
    for site in (("f", "0.1"), ("", "0.1")):
        for _ in range(SURE):
            learned.calls.add(site, 20)
        assert learned.call(site, 200, 200) == (21 if site[0] else 200)
        assert learned.call(site, 12, 12) == 12, "never more than it may have"


def test_a_value_from_outside() -> None:
    learned = Learned()
    assert learned.value(("f", "0.3")) == VALUE
    learned.values.add(("f", "0.3"), 5)
    assert learned.value(("f", "0.3")) == 6
