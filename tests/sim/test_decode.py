"""Planning many decoding sequences together changes nothing: worlds that do and worlds that do not make the same
batches, to the byte."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from ramet.runtime import decode, scheduler
from ramet.runtime.batch import Batch, Flight
from ramet.runtime.config import Limits

from .programs import Shape
from .world import Scene, World

LONG = Shape(tokens=24, width=6)  # generations long enough to become steady
SCENES = {
    "plain": Scene(rows=16, at_once=12, capacity=300, shape=LONG),
    "no overlap": Scene(rows=16, at_once=12, capacity=300, limits=Limits(batch_tokens=32, overlap=False), shape=LONG),
    "one-token chunks": Scene(rows=8, at_once=8, limits=Limits(batch_tokens=9, chunk_tokens=1), shape=LONG),
    "a full pool": Scene(capacity=110, rows=8, at_once=10, retract=0.1, evict=0.1, shape=LONG),
    "a full pool by age": Scene(
        capacity=60,
        rows=8,
        at_once=10,
        retract=0.1,
        evict=0.1,
        shape=LONG,
        limits=Limits(batch_tokens=16, chunk_tokens=8, lease_seconds=3.0, policy="age"),
    ),
    "aborts and faults": Scene(rows=8, at_once=8, abort=0.1, flush=0.05, faults=0.02, shape=LONG),
}
CALM = Scene(rows=8, at_once=2, capacity=700, context=256, shape=Shape(tokens=60, ops=5, width=3))
CALM_SCENES = {
    "plain": CALM,
    "no overlap": replace(CALM, limits=Limits(batch_tokens=16, overlap=False)),
    "few rows": replace(CALM, rows=3),
    "retractions": replace(CALM, capacity=400, retract=0.02, evict=0.05),
    "aborts and faults": replace(CALM, abort=0.02, flush=0.02, faults=0.01, cut=0.02),
}


def flat(value: Any) -> list[object]:
    """A batch as plain values, dtypes included."""
    if isinstance(value, np.ndarray):
        return [str(value.dtype), value.tobytes()]
    if isinstance(value, tuple):
        return [part for item in value for part in flat(item)]
    if hasattr(value, "__dataclass_fields__"):
        return [part for f in fields(value) if f.name != "owner" for part in flat(getattr(value, f.name))]
    return [value]


def batches(scene: Scene, seed: int, steps: int) -> list[list[object]]:
    """All batches that a world launches."""
    world, seen = World(seed, scene), []
    forward = world.runner.forward

    def recorded(batch: Batch) -> Flight:
        seen.append(flat(batch))
        return forward(batch)

    world.runner.forward = recorded  # type: ignore[method-assign,assignment]
    world.run(steps)
    return seen


@pytest.mark.parametrize("name", SCENES)
def test_together_is_one_by_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = replace(SCENES[name], eos_rate=0.02)
    sizes: list[int] = []
    advance = decode.advance

    def counted(run: Any, *arguments: Any) -> None:
        sizes.append(len(run))
        advance(run, *arguments)

    for seed in range(2):
        monkeypatch.setattr(decode, "advance", counted)
        monkeypatch.setattr(scheduler, "FEW", 1)
        together = batches(scene, seed, 100)
        monkeypatch.setattr(scheduler, "FEW", 1 << 30)
        apart = batches(scene, seed, 100)
        assert together == apart
    assert sum(size > 1 for size in sizes) > 20, "next to nothing was planned together"


@pytest.mark.parametrize("name", CALM_SCENES)
def test_what_follows_from_the_last_batch_is_what_would_be_planned(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = replace(CALM_SCENES[name], eos_rate=0.01)
    followed: list[Batch] = []
    following = decode.Steady.next

    def counted(steady: decode.Steady, *arguments: Any) -> Batch | None:
        batch = following(steady, *arguments)
        followed.extend([batch] if batch is not None else ())
        return batch

    for seed in range(3):
        monkeypatch.setattr(decode.Steady, "next", counted)
        with_it = batches(scene, seed, 200)
        monkeypatch.setattr(decode.Steady, "next", lambda *arguments: None)
        assert with_it == batches(scene, seed, 200)
    if scene.limits.overlap:
        assert len(followed) > 50, "next to nothing followed"
        assert sum(len(batch) > 1 for batch in followed) > 10, "no two went on together"
    else:
        assert not followed, "without overlap the host knows all tokens"
