"""Logprobs that were told with text are those of the whole answer, also where a stop string cuts a token."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from typing import Any

import msgspec
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


def finished(engine: Engine, sampling: ir.Sampling) -> ir.Finished:
    (end,) = [event for event in run(engine, sampling) if isinstance(event, ir.Finished)]
    return end


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


ENDS: dict[str, dict[str, Any]] = {
    "a stop string": {"stop": ("an", " t")},
    "a part of a token": {"stop": ("e",)},
    "a stop token": {},  # one of the run without it
    "an end token": {"logit_bias": {2: 9.0}},
    "the limit": {},
}


@pytest.mark.parametrize("logprobs", [-1, 2])
@pytest.mark.parametrize("how", ENDS)
def test_all_that_was_generated_can_be_told(engine: Engine, how: str, logprobs: int) -> None:
    """The text's tokens and those behind it are the ones that a run without any stop draws, with their logprobs."""
    stopped = 0
    for seed in range(8):
        free = ir.Sampling(max_tokens=25, temperature=1.2, seed=seed, ignore_eos=True, logprobs=2)
        free = msgspec.structs.replace(free, logit_bias=ENDS[how].get("logit_bias", {}))
        whole = finished(engine, free)
        held = msgspec.structs.replace(free, **ENDS[how], logprobs=logprobs, ignore_eos=how != "an end token")
        if how == "a stop token":
            held = msgspec.structs.replace(held, stop_token_ids=(whole.meta.tokens[9],))
        meta = finished(engine, held).meta
        ids = (*meta.tokens[: len(meta.tokens) - meta.respelt], *(each.token for each in meta.ending))
        assert ids == whole.meta.tokens[: len(ids)]
        assert len(meta.ending) == (1 if isinstance(meta.matched, int) else len(ids) - len(meta.tokens) + meta.respelt)
        assert bool(meta.ending) == (meta.finish_reason == "stop")
        stopped += meta.finish_reason == "stop"
        if logprobs < 0:
            assert not meta.logprobs and all(math.isnan(each.logprob) for each in meta.ending)
        else:
            assert [*meta.logprobs, *meta.ending] == list(whole.meta.logprobs[: len(ids)])
    assert (stopped > 0) == (how != "the limit")
