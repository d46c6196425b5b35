"""The overhead section of `benchmarks/cpu.py`: what it counts, and what it leaves out."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ramet.runtime.collect import Collector
from ramet.runtime.models.hub import PRESETS
from ramet.runtime.native import NativeRunner

from ..runtime.natives import native, needs_native, packed

pytestmark = needs_native
BURNT = 0.02  # seconds of CPU, far more than a step of the tiny model takes


@pytest.fixture(scope="module")
def overhead() -> Iterator[ModuleType]:
    """The module, found as the script finds it."""
    folder = str(Path(__file__).resolve().parent.parent.parent / "benchmarks")
    sys.path.insert(0, folder)
    yield importlib.import_module("cpu_parts.overhead")
    sys.path.remove(folder)


@pytest.fixture
def runner() -> NativeRunner:
    """Of a model with a small vocabulary."""
    return native(packed(replace(PRESETS["tiny"], vocab=300), "int8"))


def slowed(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same, and `BURNT` seconds of this thread's CPU."""

    def call(*arguments: Any, **options: Any) -> Any:
        end = time.thread_time() + BURNT
        while time.thread_time() < end:
            pass
        return function(*arguments, **options)

    return call


def test_a_slow_forward_is_left_out(
    overhead: ModuleType, runner: NativeRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = runner._pool
    monkeypatch.setattr(pool, "forward", slowed(pool.forward))
    assert 0 < overhead.milliseconds(runner, overhead.KINDS["greedy"], 5) < 1e3 * BURNT
    assert runner._pool is pool


def test_slow_bookkeeping_counts(overhead: ModuleType, runner: NativeRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Collector, "collect", slowed(Collector.collect))
    assert overhead.milliseconds(runner, overhead.KINDS["sampled"], 5, batch=2) >= 1e3 * BURNT


def test_a_short_context_gets_fewer_steps(overhead: ModuleType, runner: NativeRunner) -> None:
    assert overhead.milliseconds(runner, overhead.KINDS["greedy"], 10**6) > 0
