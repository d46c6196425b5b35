"""Logprobs of a sequence's own tokens: right, and the same bits whatever is cached, chunked, batched or retracted."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from ramet.frontend.ir import Sampling
from ramet.runtime import messages as m
from ramet.runtime.batch import SCORED, Batch, Flight, Samples
from ramet.runtime.models.decoder import Decoder
from ramet.runtime.models.hub import PRESETS
from ramet.runtime.models.load import random_weights
from ramet.runtime.runner import TorchFlight, TorchRunner

from .by_the_book import WEIGHTS, forward
from .driving import Drive

TINY = PRESETS["tiny"]
RNG = np.random.default_rng(5)
PREFIX = tuple(int(t) for t in RNG.integers(10, 1000, 70))
PROMPTS = [PREFIX + tuple(int(t) for t in RNG.integers(10, 1000, n)) for n in (1, 30)]
PROMPTS += [PREFIX[:40], tuple(int(t) for t in RNG.integers(10, 1000, 110)), (11, 12), (11,)]
ASKED = [(0, 3), (30, 20), (1, 0), (0, 0), (0, 1), (0, 2)]  # start and top, by prompt
WRITING = Sampling(temperature=0.8, max_tokens=25, logprobs=1, ignore_eos=True)


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def decoder(request: pytest.FixtureRequest) -> Decoder:
    torch.set_num_threads(1)
    dtype = getattr(torch, request.param)
    return Decoder(TINY, {name: t.to(dtype) for name, t in WEIGHTS.items()}, "cpu", dtype)


@pytest.fixture(scope="module")
def exact() -> Decoder:
    torch.set_num_threads(1)
    return Decoder(TINY, random_weights(TINY, torch.float32), "cpu", torch.float32)


def drive(decoder: Decoder, *, capacity: int = 4096, **limits: object) -> Drive:
    return Drive(TorchRunner(decoder, capacity=capacity, rows=16, context=1024, threads=1), **limits)


def scoring(d: Drive, prompt: tuple[int, ...], start: int = 0, top: int = 0) -> str:
    return d.program(m.Append("0.0", "0", (prompt,)), m.Score("0.1", "0", start, top))


def all_of_them(d: Drive) -> list[str]:
    return [scoring(d, prompt, *asked) for prompt, asked in zip(PROMPTS, ASKED, strict=True)]


def bits(d: Drive, names: list[str]) -> list[tuple[object, ...]]:
    assert all(d.over[name].kind == "" for name in names)
    return [d[name, "0.1"].bits for name in names]


@pytest.fixture(scope="module")
def alone(decoder: Decoder) -> list[tuple[object, ...]]:
    """The reference: each Score alone in an engine of its own."""
    found = []
    for prompt, (start, top) in zip(PROMPTS, ASKED, strict=True):
        d = drive(decoder)
        name = scoring(d, prompt, start, top)
        d.run()
        found += bits(d, [name])
    return found


# -- by the book


@pytest.mark.parametrize("start", [0, 1, 2, 40, 98, 99, 100, 1 << 30])
@pytest.mark.parametrize("top", [0, 20])
def test_every_position_has_the_models_logprob(exact: Decoder, start: int, top: int) -> None:
    prompt, d = PROMPTS[1], drive(exact, chunk_tokens=17)
    assert len(prompt) == 100
    name = scoring(d, prompt, start, top)
    d.run()
    table, result = forward(list(prompt)), d[name, "0.1"]
    assert result.tokens == list(prompt[start:])
    assert len(result.tops) == (len(result.tokens) if top else 0)
    for i, (token, logprob) in enumerate(zip(result.tokens, result.logprobs, strict=True)):
        before = start + i - 1
        if before < 0:
            assert math.isnan(logprob)
            assert not top or result.tops[0] == ()
            continue
        assert logprob == pytest.approx(float(table[before, token]), abs=2e-4)
        if top:
            best = table[before].topk(top)
            assert [p for _, p in result.tops[i]] == pytest.approx(best.values.tolist(), abs=2e-4)
            for t, p in result.tops[i]:
                assert p == pytest.approx(float(table[before, t]), abs=2e-4)


# -- the ladder


def test_batched_with_each_other(decoder: Decoder, alone: list[tuple[object, ...]]) -> None:
    d = drive(decoder)
    names = all_of_them(d)
    d.run()
    assert bits(d, names) == alone


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_chunked_while_others_decode(
    decoder: Decoder, alone: list[tuple[object, ...]], chunk: int, overlap: bool
) -> None:
    d = drive(decoder, chunk_tokens=chunk, batch_tokens=max(chunk, 12), overlap=overlap)
    quiet = drive(decoder)
    writers = [(engine, engine.completion(PREFIX[:50], WRITING, 3)) for engine in (d, quiet)]
    names = all_of_them(d)
    for engine, _ in writers:
        engine.run()
    assert bits(d, names) == alone
    assert d[writers[0][1], "0.1"].bits == quiet[writers[1][1], "0.1"].bits


@pytest.mark.parametrize("cut", [1, 2, 29, 30, 31, 70, 99, 100])
def test_warm_cache_cut_anywhere(decoder: Decoder, alone: list[tuple[object, ...]], cut: int) -> None:
    d = drive(decoder)
    d.completion(PROMPTS[1][:cut], Sampling(temperature=0, max_tokens=1))
    d.run()
    for _ in range(2):
        names = all_of_them(d)
        d.run()
        assert bits(d, names) == alone


@pytest.mark.parametrize("step", range(0, 14, 2))
def test_retracted_at_any_step(decoder: Decoder, alone: list[tuple[object, ...]], step: int) -> None:
    d = drive(decoder, chunk_tokens=16, batch_tokens=48)

    def retract(n: int) -> None:
        if n == step:
            for seq in list(d.core.scheduler.running):
                d.core.scheduler.retract(seq)

    names = all_of_them(d)
    d.run(before=retract)
    assert bits(d, names) == alone


def test_retracted_again_and_again_with_flushes(decoder: Decoder, alone: list[tuple[object, ...]]) -> None:
    d = drive(decoder, chunk_tokens=16)

    def storm(n: int) -> None:
        for seq in list(d.core.scheduler.running):
            if n % 3 == 2:
                d.core.scheduler.retract(seq)
        if n % 4 == 3:
            d.core.cache.flush()

    names = all_of_them(d)
    d.run(before=storm)
    assert d.core.scheduler.retractions > 0
    assert bits(d, names) == alone


def test_in_a_pool_that_is_hardly_larger_than_the_longest(decoder: Decoder, alone: list[tuple[object, ...]]) -> None:
    d = drive(decoder, capacity=112, chunk_tokens=32)
    for _ in range(2):
        names = all_of_them(d)
        d.run()
        assert bits(d, names) == alone
    assert d.core.cache.evicted > 0


def test_a_prompt_as_large_as_the_pool_is_scored_again_from_its_cache(exact: Decoder) -> None:
    d = drive(exact, capacity=len(PROMPTS[3]), chunk_tokens=32)
    first, second = [], []
    for found in (first, second):
        name = scoring(d, PROMPTS[3], 0, 1)
        d.run()
        found += bits(d, [name])
    assert first == second


# -- what it costs


def cost(d: Drive, name: str, op: str = "0.1") -> tuple[int, int, int]:
    """Prompt and cached tokens of a call, which its beginning told too, and what its program computed."""
    result = d[name, op]
    assert isinstance(result.done, m.Done)
    assert result.began is not None
    assert (result.began.prompt, result.began.cached) == (result.done.prompt, result.done.cached)
    return result.done.prompt, result.done.cached, d.over[name].computed


def test_cached_tokens_before_the_start_are_not_computed(exact: Decoder) -> None:
    d, prompt = drive(exact, chunk_tokens=32), PROMPTS[1]
    costs = []
    for start in (0, 0, 41, 99, 100, 1 << 30):
        name = scoring(d, prompt, start)
        d.run()
        costs.append(cost(d, name))
    assert costs == [(100, 0, 99), (100, 0, 99), (100, 40, 59), (100, 98, 1), (100, 99, 1), (100, 99, 1)]
    assert d.core.cache.slots.free == d.core.cache.capacity - 100


def test_scoring_again_holds_one_chunk_beyond_the_cache(exact: Decoder) -> None:
    d = drive(exact, chunk_tokens=16)
    held = []

    def look(n: int) -> None:
        held.extend(seq.computed - seq.depth for seq in d.core.scheduler.running)

    for _ in range(2):
        scoring(d, PROMPTS[3])
        d.run(before=look)
    assert max(held) == 16


def test_a_prefill_computes_and_caches_the_whole_prompt(exact: Decoder) -> None:
    d, prompt = drive(exact), PROMPTS[3]
    name = scoring(d, prompt, 1 << 30)
    d.run()
    assert d[name, "0.1"].bits == ((), (), (), None)
    assert cost(d, name) == (110, 0, 110)
    after = d.completion(prompt, Sampling(temperature=0, max_tokens=1))
    d.run()
    assert cost(d, after) == (110, 109, 1)


def test_what_follows_a_score_goes_on_from_it(exact: Decoder) -> None:
    d, greedy = drive(exact, chunk_tokens=16), Sampling(temperature=0, max_tokens=6, logprobs=2, ignore_eos=True)
    into = ("0.3.b0", "0.3.b1")
    scores = [m.Score(f"{seq}.1", seq, 90, 2) for seq in into]
    tails = [m.Append(f"{seq}.0", seq, ((20 + i, 21, 22),)) for i, seq in enumerate(into)]
    name = d.program(
        m.Append("0.0", "0", (PROMPTS[1],)),
        m.Score("0.1", "0", 50, 1),
        m.Generate("0.2", "0", greedy, 1),
        m.Fork("0.3", "0", into),
        *tails,
        *scores,
    )
    plain = d.completion(PROMPTS[3], greedy)
    d.run()
    fresh = drive(exact)
    same = fresh.completion(PROMPTS[1], greedy, 1)
    whole = (*PROMPTS[1], *d[name, "0.2"].tokens)
    alike = [scoring(fresh, (*whole, 20 + i, 21, 22), 90, 2) for i in range(2)]
    fresh.run()
    assert d[name, "0.2"].bits == fresh[same, "0.1"].bits
    assert [d[name, f"{seq}.1"].bits for seq in into] == [fresh[each, "0.1"].bits for each in alike]
    assert d.over[name].computed == 100 + 6 - 1 + 2 * (109 - 1 - 89)  # no token of the prompt twice
    assert d.over[plain].kind == ""


def test_a_score_of_what_was_computed_ahead(exact: Decoder) -> None:
    """The text comes first and is computed at once, the Score when the sequence rests or waits."""
    d, reference = drive(exact, lease_seconds=1e9), drive(exact)
    want = scoring(reference, PROMPTS[1], 10, 2)
    reference.run()
    name = d.program(m.Append("0.0", "0", (PROMPTS[1],)), end=False)
    for _ in range(4):
        d.step()
    assert list(d.core.scheduler.resting)
    d.order(m.OrderOps(name, (m.Score("0.1", "0", 10, 2),)), m.OrderEnd(name))
    d.run(name)
    assert d[name, "0.1"].bits == reference[want, "0.1"].bits
    assert cost(d, name) == (100, 0, 99 + 90)  # its own program computed the prompt, then what it scores again


# -- bounds and failures


class Watched(TorchRunner):
    """Remembers how much it was asked to score; `spoil` changes what it found."""

    targets: list[int]
    spoil: Callable[[Samples], Samples] | None = None

    def forward(self, batch: Batch) -> TorchFlight:
        self.targets.append(len(batch.targets))
        return super().forward(batch)

    def read(self, flight: Flight) -> Samples:
        samples = super().read(flight)
        return self.spoil(samples) if self.spoil is not None else samples


def watched(decoder: Decoder, **limits: object) -> tuple[Drive, Watched]:
    runner = Watched(decoder, capacity=4096, rows=16, context=1024, threads=1)
    runner.targets = []
    return Drive(runner, **limits), runner


def test_a_context_full_of_tokens_needs_no_more_logits_than_a_step_may_have(exact: Decoder) -> None:
    long = tuple(int(t) for t in RNG.integers(10, 1000, 1024))
    d, runner = watched(exact, chunk_tokens=512, batch_tokens=600)
    names = [scoring(d, long, start, 1) for start in (0, 700)]
    d.run()
    assert max(runner.targets) == SCORED
    assert sum(runner.targets) == 1023 + 324
    first, second = (d[name, "0.1"] for name in names)
    assert (len(first.tokens), len(second.tokens)) == (1024, 324)
    assert first.logprobs[700:] == second.logprobs
    table = forward(list(long[:300]))
    expected = [float(table[p - 1, long[p]]) for p in range(1, 300)]
    assert first.logprobs[1:300] == pytest.approx(expected, abs=5e-4)


def test_an_abort_in_the_middle_leaves_nothing_behind(exact: Decoder) -> None:
    told = set()
    for steps in range(1, 7):
        d = drive(exact, chunk_tokens=16, batch_tokens=20)
        names = [scoring(d, PROMPTS[3]), d.completion(PROMPTS[3][:60], WRITING)]
        for _ in range(steps):
            d.step()
        d.order(*map(m.OrderAbort, names))
        d.run()
        assert [d.over[name].kind for name in names] == ["aborted"] * 2
        assert d.core.cache.tree.locked == 0
        told.add(len(d.results[names[0], "0.1"].tokens) if (names[0], "0.1") in d.results else 0)
    assert len(told) > 4


def test_a_score_of_nothing_fails(exact: Decoder) -> None:
    d = drive(exact)
    name = d.program(m.Score("0.0", "0", 0, 0))
    d.run()
    failure = d[name, "0.0"].failure
    assert failure is not None
    assert (failure.kind, failure.message) == ("generation", "the prompt is empty: append text before scoring")


def test_logits_that_are_not_finite_fail_the_score_alone(exact: Decoder) -> None:
    d, runner = watched(exact, chunk_tokens=16)
    runner.spoil = lambda found: replace(found, targets=found.targets + (np.nan if len(runner.targets) > 3 else 0))
    name = scoring(d, PROMPTS[3])
    other = d.completion(PROMPTS[3], WRITING)
    d.run()
    failure = d[name, "0.1"].failure
    assert failure is not None
    assert failure.message == "the tokens cannot be scored: the logits are not finite"
    assert d.over[other].kind == ""
    assert len(d[other, "0.1"].tokens) == 25
