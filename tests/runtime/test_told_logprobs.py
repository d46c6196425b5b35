"""Logprobs that were told with text are those of the whole answer, also where a stop string cuts a token."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from ramet.frontend import ir
from ramet.frontend.backends.engine import Engine

from .engines import WAIT, checked_engine

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with checked_engine() as started:
        yield started


def run(engine: Engine, sampling: ir.Sampling) -> list[ir.Event]:
    events: list[ir.Event] = []
    over = threading.Event()

    def deliver(event: ir.Event) -> None:
        events.append(event)
        if isinstance(event, ir.Ended):
            over.set()

    session = engine.open(ir.Header(seed=0), deliver)
    session.send((ir.Text(id="0.0", seq="0", parts=("Once",)), ir.Gen(id="0.1", seq="0", var="x", sampling=sampling)))
    session.end()
    assert over.wait(WAIT)
    return events


@pytest.mark.parametrize("stop", [("e",), ("s ",), ("an", " t"), ("on", "one")])
def test_told_logprobs_are_kept(engine: Engine, stop: tuple[str, ...]) -> None:
    cut = 0
    for seed in range(12):
        events = run(engine, ir.Sampling(max_tokens=25, temperature=1.2, seed=seed, stop=stop, logprobs=1))
        told = [each for event in events if isinstance(event, ir.Token) for each in event.logprobs]
        (end,) = [event for event in events if isinstance(event, ir.Finished)]
        assert tuple(told) == end.meta.logprobs[: len(told)]
        cut += end.meta.finish_reason == "stop"
    assert cut
