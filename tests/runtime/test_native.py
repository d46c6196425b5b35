"""`NativeRunner`: the contract of a runner, `TorchRunner`'s logits within rounding, the same bits in any company."""

from __future__ import annotations

import resource
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.frontend.errors import EngineError, ModelError
from ramet.kernels.cpu import library
from ramet.runtime.batch import Batch, Draws, Masks, Runner, Targets
from ramet.runtime.config import Config
from ramet.runtime.kvpool import KvPool
from ramet.runtime.models.decoder import Decoder
from ramet.runtime.models.hub import PRESETS, ModelSource
from ramet.runtime.models.load import random_weights
from ramet.runtime.models.spec import Rope, Spec
from ramet.runtime.native import NativeRunner, build
from ramet.runtime.packed import Packed
from ramet.runtime.runner import TorchRunner

from ..kernels.ragged import Part, batch, draws
from .natives import native, needs_native, packed

pytestmark = needs_native
SPEC = Spec("llama", "tiny", 2, 64, 6, 2, 16, 96, 131, 512, 1e-5, Rope(), tied=True, window=150, windowed=(True, False))
OTHERS = {
    "qwen3": replace(SPEC, family="qwen3", qk_norm=True, window=None, windowed=(), head_dim=32, heads=4),
    "qwen2": replace(SPEC, family="qwen2", qkv_bias=True, tied=False, rope=Rope(1e4, "llama3", 8.0, 128)),
    "biased": replace(
        SPEC, qkv_bias=True, output_bias=True, mlp_bias=True, intermediate=80, hidden=80, heads=5, kv_heads=1
    ),
    "wide heads": replace(SPEC, heads=2, kv_heads=1, head_dim=128, hidden=96, rope=Rope(1e4, "yarn", 4.0, 128)),
}
IDS = np.random.default_rng(0).integers(0, 131, (4, 300)).astype(np.int32)
# mean KL to float32 that each dtype may have on random weights; bfloat16: twice that of torch
KL = {"bfloat16": 2e-4, "int8": 3e-3, "int4": 0.15}


def slots(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(1400)[: 4 * 300].reshape(4, 300).astype(np.int32)


def torch_runner(spec: Spec, dtype: torch.dtype) -> TorchRunner:
    return TorchRunner(Decoder(spec, random_weights(spec, dtype), "cpu", dtype), capacity=1400, rows=8, context=512)


@pytest.fixture(scope="module", params=["bfloat16", "int8", "int4"])
def weights(request: pytest.FixtureRequest) -> Packed:
    return packed(SPEC, request.param)


def logits_of(runner: NativeRunner | TorchRunner, made: Batch) -> np.ndarray:
    found = runner.forward(made).logits
    assert found is not None
    return found.numpy() if isinstance(found, torch.Tensor) else found.copy()


def divergence(p: np.ndarray, q: np.ndarray) -> float:
    """Mean KL of next-token distributions, in nats."""
    a, b = (torch.log_softmax(torch.from_numpy(x).double(), -1) for x in (p, q))
    return float((a.exp() * (a - b)).sum(-1).mean())


def test_it_is_a_runner(weights: Packed) -> None:
    made: Runner = native(weights)
    assert (made.capacity, made.rows, made.context, made.vocab) == (1400, 8, 512, 131)


@pytest.mark.parametrize("spec", [SPEC, *OTHERS.values()], ids=["llama", *OTHERS])
@pytest.mark.parametrize("dtype", list(KL))
def test_the_distribution_is_torchs(spec: Spec, dtype: str) -> None:
    parts = [Part(IDS[s], slots(0)[s], 0, stop) for s, stop in enumerate((200, 65, 64, 1))]
    made = batch(parts)
    exact = logits_of(torch_runner(spec, torch.float32), made)
    mine = logits_of(native(packed(spec, dtype)), made)
    limit = KL[dtype]
    if dtype == "bfloat16":
        limit = max(1e-6, 2 * divergence(exact, logits_of(torch_runner(spec, torch.bfloat16), made)))
    assert 0 < divergence(exact, mine) <= limit


def test_greedy_tokens_are_those_of_torch_where_margins_allow() -> None:
    made = batch([Part(IDS[s], slots(0)[s], 0, 300) for s in range(4)])
    exact = logits_of(torch_runner(SPEC, torch.float32), made)
    mine = logits_of(native(packed(SPEC, "bfloat16")), made)
    order = np.sort(exact, -1)
    clear = order[:, -1] - order[:, -2] > 2 * np.abs(exact - mine).max()
    assert clear.mean() > 0.3
    assert np.array_equal(exact.argmax(-1)[clear], mine.argmax(-1)[clear])


# -- equality


@pytest.fixture(scope="module")
def alone(weights: Packed) -> list[np.ndarray]:
    """Logits of every position of every sequence, computed alone by one thread."""
    runner = native(weights)
    return [logits_of(runner, batch([Part(IDS[s], slots(s)[s], 0, 300)])) for s in range(4)]


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_bits_do_not_depend_on_batch_or_threads(weights: Packed, alone: list[np.ndarray], data: st.DataObject) -> None:
    """Random interleavings of random chunks over random slots; slots that no sequence wrote hold huge numbers."""
    engine = native(weights, threads=data.draw(st.sampled_from([1, 2, 3, 5])))
    engine._kv.bytes.view(np.uint16)[:] = 0x7F00
    places, done = slots(data.draw(st.integers(0, 1000))), [0, 0, 0, 0]
    for _ in range(data.draw(st.integers(1, 7))):
        parts, owners = [], []
        for s in data.draw(st.permutations(range(4))):
            stop = min(300, done[s] + data.draw(st.sampled_from([0, 1, 1, 1, 2, 5, 8, 9, 64, 129, 200])))
            if stop > done[s]:
                parts.append(Part(IDS[s], places[s], done[s], stop))
                owners.append(s)
                done[s] = stop
        if not parts:
            continue
        ends = np.cumsum([part.stop - part.start for part in parts])[:-1]
        for s, part, found in zip(owners, parts, np.split(logits_of(engine, batch(parts)), ends), strict=True):
            assert np.array_equal(found, alone[s][part.start : part.stop])


@pytest.mark.parametrize("threads", [1, 3])
def test_siblings_that_share_a_prefix(weights: Packed, threads: int) -> None:
    """Nested forks, whose shared blocks are read once, and the same sequences one by one."""
    rng = np.random.default_rng(3)
    trunk, place = rng.integers(0, 131, 200).astype(np.int32), np.arange(1400, dtype=np.int32)
    engine = native(weights, threads=threads)
    engine.forward(batch([Part(trunk, place, 0, 200)]))
    leaves, at = [], 200
    for twig in range(2):
        shared = np.concatenate((trunk[:128], rng.integers(0, 131, 100))).astype(np.int32)
        middle = np.concatenate((place[:128], place[at : at + 100]))
        at += 100
        engine.forward(batch([Part(shared, middle, 128, 228)]))
        for _ in range(3):
            own = 1 + twig
            ids = np.concatenate((shared, rng.integers(0, 131, own))).astype(np.int32)
            leaves.append(Part(ids, np.concatenate((middle, place[at : at + own])), 228, 228 + own))
            at += own
    leaves.append(Part(np.append(trunk, np.int32(5)), np.append(place[:200], place[at]), 200, 201))
    together = logits_of(engine, batch(leaves))
    one_by_one = [logits_of(engine, batch([leaf])) for leaf in leaves]
    assert np.array_equal(together, np.concatenate(one_by_one))


def test_a_fork_sees_what_its_own_batch_writes(weights: Packed, alone: list[np.ndarray]) -> None:
    engine, place = native(weights), slots(5)
    branch = place[0].copy()
    branch[100:] = place[1][100:]
    parts = [Part(IDS[0], branch, 100, 104), Part(IDS[0], place[0], 0, 100), Part(IDS[0], place[0], 100, 101)]
    logits = logits_of(engine, batch(parts))
    assert np.array_equal(logits[:4], alone[0][100:104])
    assert np.array_equal(logits[4:105], alone[0][:101])


@pytest.mark.parametrize("level", library.LEVELS)
def test_every_level_computes_the_same_function(level: str) -> None:
    lib = library.load()
    if library.LEVELS.index(level) > library.LEVELS.index(lib.level):
        with pytest.raises(ModelError):
            library.Pool(lib, 1, level)
        return
    made = batch([Part(IDS[s], slots(0)[s], 0, 70) for s in range(3)])
    for dtype in ("bfloat16", "int8"):
        found = logits_of(native(packed(SPEC, dtype), level=level), made)
        assert divergence(logits_of(torch_runner(SPEC, torch.float32), made), found) <= KL[dtype]


# -- the token table and the order of calls


def prompts(place: np.ndarray) -> tuple[Part, Part]:
    return Part(IDS[0], place[0], 0, 20), Part(IDS[1], place[1], 0, 9)


def test_one_step_late_equals_one_at_a_time(weights: Packed) -> None:
    """forward(N + 1) is launched before read(N); tokens travel over the table only."""
    place, order = slots(0), (3, 6)
    eager, late = native(weights), native(weights)

    def made(step: int) -> Batch:
        if step == 0:
            return batch(prompts(place), drawn=draws([19, 28], into=order))
        parts = [Part(IDS[0], place[0], 19 + step, 20 + step), Part(IDS[1], place[1], 8 + step, 9 + step)]
        parts = parts[::-1] if step % 2 else parts
        into = order[::-1] if step % 2 else order
        return batch(parts, drawn=draws([0, 1], into=into), feeds=dict(enumerate(into)))

    wanted = []
    for step in range(12):
        flight = eager.forward(made(step))
        eager.sample(flight, Masks())
        wanted.append(eager.read(flight).tokens.tolist())
    found, last = [], None
    for step in range(12):
        flight = late.forward(made(step))
        if last is not None:
            found.append(late.read(last).tokens.tolist())
        late.sample(flight, Masks())
        last = flight
    assert last is not None
    found.append(late.read(last).tokens.tolist())
    assert found == wanted
    assert len({token for pair in wanted for token in pair}) > 3


def test_a_draw_that_failed_does_not_break_the_next_batch(weights: Packed) -> None:
    place, engine = slots(0), native(weights)
    first = engine.forward(batch(prompts(place), drawn=draws([19, 28], into=[0, 1])))
    engine.sample(first, Masks(allowed=((0, np.zeros(5, np.uint32)),)))
    parts = [Part(IDS[0], place[0], 20, 21), Part(IDS[1], place[1], 9, 10)]
    second = engine.forward(batch(parts, drawn=draws([0, 1]), feeds={0: 0, 1: 1}))
    found = engine.read(first).tokens
    assert found[0] == -1
    assert found[1] >= 0
    engine.sample(second, Masks())
    assert (engine.read(second).tokens >= 0).all()


def test_samples_are_those_of_torch_on_the_same_logits(weights: Packed) -> None:
    """Every option at once, several draws and targets on shared rows: sampling is one function on both paths."""
    engine, other, place = native(weights), torch_runner(SPEC, torch.float32), slots(0)
    targets = Targets(np.array([4, 19, 4], np.int32), np.array([7, 8, 9], np.int32), np.array([2, 0, 3], np.int32))
    bias = ((1, np.array([3, 4], np.int32), np.array([-np.inf, 2], np.float32)),)
    drawn = draws(
        [19, 19, 4, 28],
        into=[0, 1, 2, 3],
        temperature=[0, 5, 0.8, 1],
        seeds=3,
        positions=20,
        logprobs=[2, 0, -1, 4],
        top_p=[1, 0.9, 1, 0.5],
        top_k=[0, 0, 7, 0],
        min_p=[0, 0, 0.1, 0],
        repetition=[1, 1.5, 1, 1],
        bias=bias,
    )
    masks = Masks(((1, IDS[0, :20], 5),), ((3, np.full(5, 0xF0F0F0F0, np.uint32)),))
    made = batch(prompts(place), drawn=drawn, targets=targets)
    mine, theirs = engine.forward(made), other.forward(made)
    assert mine.logits is not None
    theirs.logits = torch.from_numpy(mine.logits.copy())
    engine.sample(mine, masks)
    other.sample(theirs, masks)
    a, b = engine.read(mine), other.read(theirs)
    for name in ("tokens", "logprobs", "top_ids", "top_logprobs", "targets", "target_ids", "target_logprobs"):
        left, right = getattr(a, name), getattr(b, name)
        assert left.dtype == right.dtype
        if left.dtype.kind == "f":  # the sums over the vocabulary round differently
            assert np.allclose(left, right, rtol=1e-6, atol=2e-6, equal_nan=True)
        else:
            assert np.array_equal(left, right)


def test_batches_without_draws_or_tokens(weights: Packed) -> None:
    engine, place = native(weights), slots(0)
    for made in (batch([], drawn=draws([])), batch(prompts(place), drawn=draws([]))):
        flight = engine.forward(made)
        engine.sample(flight, Masks())
        found = engine.read(flight)
        assert found.tokens.shape == found.logprobs.shape == found.targets.shape == (0,)


def test_batches_that_share_their_draws_want_what_they_say(weights: Packed) -> None:
    """A Score's part, which draws nothing, then a chunk of another prompt, which wants nothing, and again."""
    runner, place = native(weights), slots(3)
    nothing = np.zeros(0, np.int32)
    drawn = Draws.of(nothing, nothing, np.zeros(0, np.int64))
    every = np.arange(20, dtype=np.int32)
    scored = batch([Part(IDS[0], place[0], 0, 20)], drawn=drawn, targets=Targets(every, IDS[0, 1:21]))
    chunk = batch([Part(IDS[1], place[1], 0, 3)], drawn=drawn)
    for made, count in ((scored, 20), (chunk, 0), (chunk, 0), (scored, 20)):
        flight = runner.forward(made)
        assert flight.count == count
        runner.sample(flight, Masks())
        assert len(runner.read(flight).targets) == count


def test_logits_of_flights_in_the_air_are_their_own(weights: Packed) -> None:
    engine, place = native(weights), slots(0)
    first = engine.forward(batch([Part(IDS[0], place[0], 0, 9)]))
    assert first.logits is not None
    before = first.logits.copy()
    second = engine.forward(batch([Part(IDS[1], place[1], 0, 9)]))
    assert np.array_equal(first.logits, before)
    engine.sample(first, Masks())
    third = engine.forward(batch([Part(IDS[2], place[2], 0, 5)]))
    assert second.logits is not None
    assert third.logits is not None
    assert not np.shares_memory(second.logits, third.logits)


# -- sizes


@pytest.mark.parametrize("field", ["capacity", "rows", "context"])
def test_sizes_that_make_no_sense(weights: Packed, field: str) -> None:
    with pytest.raises(EngineError, match=f"{field}=0: must be at least 1"):
        native(weights, **{field: 0})


def test_a_context_longer_than_the_model(weights: Packed) -> None:
    with pytest.raises(EngineError, match="context=513: the model 'tiny' has 512"):
        native(weights, context=513)


def test_a_pool_that_does_not_fit(weights: Packed) -> None:
    with pytest.raises(ModelError, match=r"no room for a KV pool of .* GiB; ask for less"):
        native(weights, capacity=1 << 42)


def test_a_pool_costs_nothing_until_it_is_written() -> None:
    """A GiB of it, of which some pages are touched."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pool = KvPool(1 << 30)
    assert not pool.bytes[:: 1 << 26].any()
    pool.bytes[-1] = 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # KiB


def test_a_closed_runner_says_so(weights: Packed) -> None:
    engine = native(weights)
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.forward(batch([Part(IDS[0], slots(0)[0], 0, 9)]))


def test_build() -> None:
    spec, source = replace(PRESETS["tiny"], vocab=600), ModelSource("random", Path(), "random:tiny", "tiny")
    made = build(Config(threads=2, kv_tokens=700, max_running=5), spec, source, dtype="bfloat16")
    assert (made.capacity, made.rows, made.context, made.dtype_name) == (700, 5, 2048, "bfloat16")
    assert made.threads == 2
    assert build(Config(context=100, threads=1), spec, source).context == 100
    with pytest.raises(EngineError, match="context=9000: the model 'random:tiny' has 2048"):
        build(Config(context=9000), spec, source)
    with pytest.raises(EngineError, match="dtype='float32': the native kernels have bfloat16, int8, int4"):
        build(Config(dtype="float32"), spec, source)
    with pytest.raises(EngineError, match=r"kv_tokens=\d+: a KV pool of .* GiB does not fit"):
        build(Config(kv_tokens=1 << 40), spec, source)
    with pytest.raises(EngineError, match="threads=1000: must be between 1 and 256"):
        build(Config(threads=1000, kv_tokens=100), spec, source)
