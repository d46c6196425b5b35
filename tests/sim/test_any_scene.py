"""Scenes that hypothesis invents: any pool, any budget, any mix of trouble; the smallest failing one is shown."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.runtime.config import Limits

from .programs import Shape
from .world import Scene, World

RATE = st.sampled_from([0.0, 0.05, 0.3])
LIMITS = st.builds(
    Limits,
    batch_tokens=st.integers(1, 40),
    chunk_tokens=st.integers(1, 20),
    lease_seconds=st.sampled_from([0.0, 1.0, 10.0]),
    overlap=st.booleans(),
    policy=st.sampled_from(["peak", "peak", "age", "lru-fcfs"]),
)
SHAPES = st.builds(Shape, vocab=st.integers(3, 12), ops=st.integers(1, 16), width=st.integers(1, 5))
SCENES = st.builds(
    Scene,
    capacity=st.integers(16, 120),
    rows=st.integers(1, 10),
    context=st.integers(16, 80),
    limits=LIMITS,
    shape=SHAPES,
    eos_rate=RATE,
    at_once=st.integers(1, 10),
    abort=RATE,
    flush=RATE,
    retract=RATE,
    evict=RATE,
    faults=st.sampled_from([0.0, 0.0, 0.05]),
    namespaces=st.integers(1, 3),
)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32), scene=SCENES)
def test_any_scene(seed: int, scene: Scene) -> None:
    World(seed, scene).run(60)
