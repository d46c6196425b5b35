"""Estimates of plans over the workloads: after one run of each program they tell what runs with other texts cost."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ramet.frontend import estimate

pytestmark = pytest.mark.model
FOLDER = Path(__file__).resolve().parent.parent.parent / "benchmarks"
SHORT = (1, 5)  # a plan without breaks, and one whose body goes on
CUTS = 12  # how far its calls come before they are cut off is a matter of time


@pytest.fixture(scope="module")
def parts() -> Iterator[SimpleNamespace]:
    sys.path.insert(0, str(FOLDER))
    yield SimpleNamespace(
        **{name: importlib.import_module(f"programs_parts.{name}") for name in ("catalog", "estimates", "places")}
    )
    sys.path.remove(str(FOLDER))


@pytest.fixture(scope="module")
def places(parts: SimpleNamespace) -> Iterator[Any]:
    with parts.places.Places(parts.places.Setting("random:tiny", "auto", 1, True, pace=0.005)) as made:
        yield made


def errors(parts: SimpleNamespace, places: Any, numbers: Sequence[int]) -> dict[int, float]:
    """The median error of each workload's runs."""
    return {number: parts.estimates.guessed(places, parts.catalog.WORKLOADS[number]).error for number in numbers}


def within(found: dict[int, float], most: float) -> bool:
    return all(error <= most for error in found.values())


def test_estimates_are_near_after_one_run(parts: SimpleNamespace, places: Any) -> None:
    assert within(errors(parts, places, SHORT), parts.estimates.MOST)


@pytest.mark.nightly
def test_estimates_of_all_workloads(parts: SimpleNamespace, places: Any) -> None:
    found = [parts.estimates.guessed(places, workload) for workload in parts.catalog.WORKLOADS]
    assert within({n: each.error for n, each in enumerate(found) if n != CUTS}, parts.estimates.MOST)
    assert parts.estimates.overall(found) <= 0.05
    assert parts.estimates.table(found).row_count == 15


def test_without_what_breaks_taught_the_rest_of_a_program_is_missing(
    parts: SimpleNamespace, places: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: the same check fails where runs are not looked at behind graph breaks."""
    monkeypatch.setattr(estimate, "_look_beyond", lambda *_: None)
    assert not within(errors(parts, places, SHORT[1:2]), parts.estimates.MOST)


def test_without_a_run_before_the_ratio_of_tokens_is_a_guess(
    parts: SimpleNamespace, places: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: the same check fails where nothing is learned at all."""
    monkeypatch.setattr(estimate, "_learn", lambda *_: None)
    monkeypatch.setattr(estimate, "_look_beyond", lambda *_: None)
    assert not within(errors(parts, places, SHORT[:1]), parts.estimates.MOST)
