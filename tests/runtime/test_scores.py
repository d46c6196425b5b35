"""Scores and token ids as a client sees them: events with texts, counts, and how they stand among other operations."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator

import pytest

from ramet.frontend import ir
from ramet.frontend.backends.engine import Engine

from .by_the_book import forward, tokenizer
from .engines import PROMPT, WAIT, assert_clean, checked_engine

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with checked_engine() as started:
        yield started


def events(engine: Engine, *ops: ir.AnyOp) -> list[ir.Event]:
    """All events of a program."""
    found: list[ir.Event] = []
    over = threading.Event()

    def deliver(event: ir.Event) -> None:
        found.append(event)
        if isinstance(event, ir.Ended):
            over.set()

    session = engine.open(ir.Header(), deliver)
    session.send(ops)
    session.end()
    assert over.wait(WAIT)
    assert_clean(engine)
    return found


def score(at: str, start: int = 0, top: int = 0) -> ir.Score:
    return ir.Score(id=at, seq="0", var="s", start=start, top=top)


GREEDY = ir.Sampling(temperature=0, max_tokens=5, ignore_eos=True, logprobs=1)


def test_the_events_of_a_score(engine: Engine) -> None:
    engine.flush_cache()
    text = tokenizer(engine)
    ids = text.encode(PROMPT)
    prompt = ir.Tokens(id="0.0", seq="0", ids=tuple(ids))
    started, finished, ended = events(engine, prompt, score("0.1", 0, 3))
    assert started == ir.Started("0.1", "0", "s", len(ids), 0)
    assert isinstance(finished, ir.Finished)
    assert isinstance(ended, ir.Ended)
    assert (finished.op, finished.var, finished.value) == ("0.1", "s", "")
    meta, table = finished.meta, forward(ids)
    assert (meta.prompt_tokens, meta.cached_tokens, meta.completion_tokens, meta.tokens) == (len(ids), 0, 0, ())
    assert [p.token for p in meta.logprobs] == ids
    assert [p.text for p in meta.logprobs] == [text.decode([token]) for token in ids]
    assert math.isnan(meta.logprobs[0].logprob)
    assert meta.logprobs[0].top == ()
    for at, each in enumerate(meta.logprobs[1:]):
        assert each.logprob == pytest.approx(float(table[at, each.token]), abs=2e-4)
        assert [name for _, name, _ in each.top] == [text.decode([token]) for token, _, _ in each.top]
        assert [p for _, _, p in each.top] == pytest.approx(table[at].topk(3).values.tolist(), abs=2e-4)
    assert meta.mean_logprob == pytest.approx(sum(p.logprob for p in meta.logprobs[1:]) / (len(ids) - 1))
    assert (ended.usage.calls, ended.usage.computed_tokens) == (1, len(ids) - 1)


def test_a_prefill_has_no_logprobs_and_says_what_was_cached(engine: Engine) -> None:
    engine.flush_cache()
    ids = tuple(tokenizer(engine).encode(PROMPT))
    for cached in (0, len(ids) - 1):
        started, finished, _ = events(engine, ir.Tokens(id="0.0", seq="0", ids=ids), score("0.1", 1 << 30))
        assert started == ir.Started("0.1", "0", "s", len(ids), cached)
        assert isinstance(finished, ir.Finished)
        assert (finished.meta.prompt_tokens, finished.meta.cached_tokens) == (len(ids), cached)
        assert (finished.meta.logprobs, finished.meta.mean_logprob) == ((), None)


def test_ids_generate_what_their_text_does(engine: Engine) -> None:
    ids = tuple(tokenizer(engine).encode(PROMPT))
    values = []
    for prompt in (ir.Text(id="0.0", seq="0", parts=(PROMPT,)), ir.Tokens(id="0.0", seq="0", ids=ids)):
        found = events(engine, prompt, ir.Gen(id="0.1", seq="0", var="x", sampling=GREEDY))
        values += [(event.value, event.meta.logprobs) for event in found if isinstance(event, ir.Finished)]
    assert values[0] == values[1]


def test_what_was_sampled_is_scored_alike(engine: Engine) -> None:
    """The logprobs of sampled tokens and those that a Score gives to the same tokens later are the same bits."""
    gen = ir.Gen(id="0.1", seq="0", var="x", sampling=GREEDY)
    text, count = ir.Text(id="0.0", seq="0", parts=(PROMPT,)), len(tokenizer(engine).encode(PROMPT))
    found = events(engine, text, gen, score("0.2", count, 1))
    sampled, scored = (event.meta.logprobs for event in found if isinstance(event, ir.Finished))
    assert len(sampled) == 5
    assert sampled == scored


def test_started_tells_what_finished_tells(engine: Engine) -> None:
    engine.flush_cache()
    into = ("0.1.b0", "0.1.b1")
    ops: list[ir.AnyOp] = [ir.Text(id="0.0", seq="0", parts=(PROMPT,)), ir.Fork(id="0.1", seq="0", into=into)]
    for seq, more in zip(into, (" Then", " And then it"), strict=True):
        ops += [
            ir.Text(id=f"{seq}.0", seq=seq, parts=(more,)),
            ir.Gen(id=f"{seq}.1", seq=seq, var="x", sampling=GREEDY),
        ]
        ops.append(ir.Select(id=f"{seq}.2", seq=seq, var="y", choices=(" yes", " no")))
    found = events(engine, *ops)
    started = {e.op: (e.prompt_tokens, e.cached_tokens) for e in found if isinstance(e, ir.Started)}
    finished = {e.op: (e.meta.prompt_tokens, e.meta.cached_tokens) for e in found if isinstance(e, ir.Finished)}
    assert started == finished
    assert len(started) == 4
    first = [type(e) for e in found if getattr(e, "op", "") == f"{into[0]}.1"]
    assert first[0] is ir.Started
    assert first[-1] is ir.Finished
