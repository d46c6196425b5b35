"""The equality ladder: the same request gives the same bits, whatever happens around it (RELIABILITY, "Equality")."""

from __future__ import annotations

from dataclasses import replace
from itertools import cycle

import numpy as np
import pytest
import torch

from ramet.frontend.ir import Sampling
from ramet.runtime import messages as m
from ramet.runtime.config import POLICIES
from ramet.runtime.models.decoder import Decoder
from ramet.runtime.models.hub import PRESETS
from ramet.runtime.models.load import random_weights
from ramet.runtime.native import PAYS
from ramet.runtime.packed import Packed
from ramet.runtime.runner import TorchRunner

from .driving import Drive
from .natives import native, needs_native, packed

SPEC = replace(PRESETS["tiny"], vocab=2000)
RNG = np.random.default_rng(7)
PREFIX = tuple(int(t) for t in RNG.integers(10, 1990, 90))
PROMPTS = [PREFIX + tuple(int(t) for t in RNG.integers(10, 1990, n)) for n in (1, 3, 40)]
PROMPTS += [PREFIX[:50], tuple(int(t) for t in RNG.integers(10, 1990, 130)), (11,)]
SAMPLINGS = [
    Sampling(temperature=0, max_tokens=12, logprobs=3),
    Sampling(temperature=0.9, top_p=0.9, max_tokens=12, logprobs=0),
    Sampling(temperature=1.2, top_k=20, min_p=0.01, max_tokens=9, logprobs=1, repetition_penalty=1.2),
    Sampling(temperature=0.7, max_tokens=14, frequency_penalty=0.5, presence_penalty=0.2, logprobs=0),
]
THREADS = cycle((1, 2, 3))
RULES = cycle((PAYS, 0))  # what a shared prefix must save to be read once: both sides of the break-even
REQUESTS = [(prompt, SAMPLINGS[i % len(SAMPLINGS)], 1000 + i) for i, prompt in enumerate(PROMPTS)]


NATIVE = [pytest.param(f"native {dtype}", marks=needs_native) for dtype in ("bfloat16", "int8", "int4")]


@pytest.fixture(scope="module", params=["float32", "bfloat16", *NATIVE])
def decoder(request: pytest.FixtureRequest) -> Decoder | Packed:
    torch.set_num_threads(1)
    kernels, _, name = request.param.rpartition(" ")
    if kernels:
        return packed(SPEC, name, seed=3)
    dtype = getattr(torch, name)
    return Decoder(SPEC, random_weights(SPEC, dtype, seed=3), "cpu", dtype)


def drive(decoder: Decoder | Packed, *, capacity: int = 2048, **limits: object) -> Drive:
    """An engine of its own; the native kernels have another number of threads, and another rule of when to read shared
    prefixes once, in every other one."""
    if isinstance(decoder, Packed):
        runner = native(decoder, capacity=capacity, rows=32, context=512, threads=next(THREADS))
        runner.pays = next(RULES)
        return Drive(runner, **limits)
    return Drive(TorchRunner(decoder, capacity=capacity, rows=32, context=512, threads=1), **limits)


@pytest.fixture(scope="module")
def alone(decoder: Decoder | Packed) -> list[tuple[object, ...]]:
    """The reference: each request alone in an engine of its own."""
    bits = []
    for prompt, sampling, seed in REQUESTS:
        d = drive(decoder)
        name = d.completion(prompt, sampling, seed)
        d.run()
        assert d.over[name].kind == ""
        bits.append(d[name, "0.1"].bits)
    return bits


def together(d: Drive) -> list[tuple[object, ...]]:
    names = [d.completion(*request) for request in REQUESTS]
    d.run(*names)
    return [d[name, "0.1"].bits for name in names]


def test_the_reference_says_something(alone: list[tuple[object, ...]]) -> None:
    assert len({bits[0] for bits in alone}) == len(alone)


def test_batched_with_others(decoder: Decoder | Packed, alone: list[tuple[object, ...]]) -> None:
    assert together(drive(decoder)) == alone


def test_batched_in_another_order_and_staggered(decoder: Decoder | Packed, alone: list[tuple[object, ...]]) -> None:
    d = drive(decoder)
    names: dict[int, str] = {}

    def arrive(n: int) -> None:
        if n % 3 == 0 and n // 3 < len(REQUESTS):
            i = len(REQUESTS) - 1 - n // 3
            names[i] = d.completion(*REQUESTS[i])

    arrive(0)
    d.run(before=lambda n: arrive(n) if n else None)
    while len(names) < len(REQUESTS):
        arrive(3 * len(names))
        d.run()
    assert [d[names[i], "0.1"].bits for i in range(len(REQUESTS))] == alone


def test_warm(decoder: Decoder | Packed, alone: list[tuple[object, ...]]) -> None:
    d = drive(decoder)
    together(d)
    assert together(d) == alone


@pytest.mark.parametrize("cut", [1, 2, 17, 64, 89, 90])
def test_warm_cache_cut_anywhere(decoder: Decoder | Packed, alone: list[tuple[object, ...]], cut: int) -> None:
    d = drive(decoder)
    d.completion(PROMPTS[2][:cut], Sampling(temperature=0, max_tokens=1))
    d.run()
    assert together(d) == alone


@pytest.mark.parametrize("chunk", [1, 7, 64, 512])
def test_chunked(decoder: Decoder | Packed, alone: list[tuple[object, ...]], chunk: int) -> None:
    assert together(drive(decoder, chunk_tokens=chunk, batch_tokens=max(chunk, 16))) == alone


def test_without_overlap(decoder: Decoder | Packed, alone: list[tuple[object, ...]]) -> None:
    assert together(drive(decoder, overlap=False)) == alone


@pytest.mark.parametrize("step", range(0, 16, 2))
def test_retracted_at_any_step(decoder: Decoder | Packed, alone: list[tuple[object, ...]], step: int) -> None:
    d = drive(decoder)

    def retract(n: int) -> None:
        if n == step:
            for seq in list(d.core.scheduler.running):
                d.core.scheduler.retract(seq)

    names = [d.completion(*request) for request in REQUESTS]
    d.run(before=retract)
    assert d.core.scheduler.retractions > 0 or step == 0
    assert [d[name, "0.1"].bits for name in names] == alone


def test_retracted_at_every_step_with_eviction(decoder: Decoder | Packed, alone: list[tuple[object, ...]]) -> None:
    d = drive(decoder)

    def storm(n: int) -> None:
        for seq in list(d.core.scheduler.running):
            if n % 3 == 2:
                d.core.scheduler.retract(seq)
        if n % 4 == 3:
            d.core.cache.flush()

    names = [d.completion(*request) for request in REQUESTS]
    d.run(before=storm)
    assert [d[name, "0.1"].bits for name in names] == alone


def test_in_a_pool_that_is_too_small_for_all(decoder: Decoder | Packed, alone: list[tuple[object, ...]]) -> None:
    d = drive(decoder, capacity=170)
    assert together(d) == alone
    assert d.core.cache.evicted > 0


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("capacity", [170, 2048])
def test_under_each_policy(
    decoder: Decoder | Packed, alone: list[tuple[object, ...]], policy: str, capacity: int
) -> None:
    d = drive(decoder, capacity=capacity, policy=policy, chunk_tokens=24, batch_tokens=40)
    assert together(d) == alone
    assert together(d) == alone


def test_fork_siblings(decoder: Decoder | Packed, alone: list[tuple[object, ...]]) -> None:
    """Branches with the requests' seeds and samplings, over a prompt that they share."""
    prompt = PROMPTS[0]
    references = []
    for i, sampling in enumerate(SAMPLINGS):
        d = drive(decoder)
        name = d.completion(prompt, sampling, i)
        d.run()
        references.append(d[name, "0.1"].bits)
    d = drive(decoder)
    into = tuple(f"0.1.b{i}" for i in range(len(SAMPLINGS)))
    gens = [m.Generate(f"{seq}.0", seq, SAMPLINGS[i], i) for i, seq in enumerate(into)]
    name = d.program(m.Append("0.0", "0", (prompt,)), m.Fork("0.1", "0", into), *gens)
    d.run()
    assert [d[name, f"{seq}.0"].bits for seq in into] == references
    assert d.over[name].computed == len(prompt) + sum(s.max_tokens - 1 for s in SAMPLINGS if s.max_tokens)


def test_a_choice_scores_the_same_bits_in_any_company(decoder: Decoder | Packed) -> None:
    choices = ((5, 6, 7), (5, 6, 9, 10), (5, 8), (30,), (5, 6))
    seen = set()
    for chunk in (1, 7, 512):
        for company in (0, 3):
            d = drive(decoder, chunk_tokens=chunk)
            for request in REQUESTS[:company]:
                d.completion(*request)
            choose = m.Choose("0.1", "0", choices, "unconditional_likelihood_normalized", (1,))
            after = m.Generate("0.2", "0", SAMPLINGS[0], 5)
            name = d.program(m.Append("0.0", "0", (PROMPTS[2],)), choose, after)
            d.run()
            done = d[name, "0.1"].done
            assert isinstance(done, m.Chosen)
            seen.add((done.winner, done.scores, done.logprobs, d[name, "0.2"].bits))
    assert len(seen) == 1


def test_a_chosen_text_goes_on_like_a_given_one(decoder: Decoder | Packed) -> None:
    d = drive(decoder)
    chosen = d.program(
        m.Append("0.0", "0", (PROMPTS[0],)),
        m.Choose("0.1", "0", ((40, 41, 42),), "token_length_normalized"),
        m.Generate("0.2", "0", SAMPLINGS[0], 5),
    )
    d.run()
    fresh = drive(decoder)
    given = fresh.completion((*PROMPTS[0], 40, 41, 42), SAMPLINGS[0], 5)
    fresh.run()
    assert d[chosen, "0.2"].bits == fresh[given, "0.1"].bits


@pytest.mark.parametrize("overlap", [True, False])
def test_what_siblings_share_counts_as_cached(decoder: Decoder | Packed, overlap: bool) -> None:
    d = drive(decoder, overlap=overlap)
    into = ("0.1.b0", "0.1.b1")
    gens = [m.Generate(f"{seq}.0", seq, SAMPLINGS[0], i) for i, seq in enumerate(into)]
    name = d.program(m.Append("0.0", "0", (PROMPTS[0],)), m.Fork("0.1", "0", into), *gens)
    d.run()
    cached = [done.cached for seq in into if isinstance(done := d[name, f"{seq}.0"].done, m.Done)]
    assert cached == [0, len(PROMPTS[0])]
    assert d.over[name].cached == len(PROMPTS[0])
