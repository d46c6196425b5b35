"""The runner: the token table, the order of calls, empty batches, equality over ragged batches, pool sizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.frontend.errors import EngineError, ModelError
from ramet.kernels import reference
from ramet.runtime.batch import Batch, Masks, Runner, Targets
from ramet.runtime.config import Config
from ramet.runtime.models.decoder import Decoder
from ramet.runtime.models.load import random_weights
from ramet.runtime.models.spec import Rope, Spec
from ramet.runtime.runner import (
    TorchRunner,
    build,
    default_capacity,
    free_memory,
    kv_bytes_per_token,
    native_dtype,
    weight_bytes,
)

from ..kernels.ragged import Part, batch, draws

SPEC = Spec("llama", "tiny", 2, 64, 6, 2, 16, 96, 131, 512, 1e-5, Rope(), tied=True, window=150, windowed=(True, False))
DTYPES = [torch.float32, torch.bfloat16]
CAPACITY = 1400


def runner(dtype: torch.dtype = torch.float32, **fields: int) -> TorchRunner:
    decoder = Decoder(SPEC, random_weights(SPEC, dtype, 0), "cpu", dtype)
    return TorchRunner(decoder, **{"capacity": CAPACITY, "rows": 8, "context": 512} | fields)


IDS = np.random.default_rng(0).integers(0, 131, (4, 300)).astype(np.int32)


def slots(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(CAPACITY)[: 4 * 300].reshape(4, 300).astype(np.int32)


def test_it_is_a_runner() -> None:
    made: Runner = runner()
    assert (made.capacity, made.rows, made.context, made.vocab) == (CAPACITY, 8, 512, 131)


# -- equality


def poison(engine: TorchRunner) -> None:
    with torch.inference_mode():
        engine._cache.fill_(torch.nan)


@pytest.fixture(scope="module", params=DTYPES, ids=str)
def engine(request: pytest.FixtureRequest) -> TorchRunner:
    return runner(request.param)


@pytest.fixture(scope="module")
def alone(engine: TorchRunner) -> list[torch.Tensor]:
    """Logits of every position of every sequence, computed alone in one batch."""
    found = []
    for s in range(4):
        logits = engine.forward(batch([Part(IDS[s], slots(s)[s], 0, 300)])).logits
        assert logits is not None
        found.append(logits)
    return found


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_bits_do_not_depend_on_the_batch(engine: TorchRunner, alone: list[torch.Tensor], data: st.DataObject) -> None:
    """Random interleavings of random chunks over random slots; every slot that no sequence wrote holds nan."""
    poison(engine)
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
        logits = engine.forward(batch(parts)).logits
        assert logits is not None
        for s, part, found in zip(owners, parts, logits.split([p.stop - p.start for p in parts]), strict=True):
            assert torch.equal(found, alone[s][part.start : part.stop])


def test_a_fork_sees_what_its_own_batch_writes(engine: TorchRunner, alone: list[torch.Tensor]) -> None:
    """Branches of one prompt in the batch that computes the prompt, its slots shared; the third branch has no tokens
    yet."""
    poison(engine)
    place = slots(5)
    branch = place[0].copy()
    branch[100:] = place[1][100:]
    parts = [Part(IDS[0], branch, 100, 104), Part(IDS[0], place[0], 0, 100), Part(IDS[0], place[0], 100, 101)]
    logits = engine.forward(batch(parts)).logits
    assert logits is not None
    assert torch.equal(logits[:4], alone[0][100:104])
    assert torch.equal(logits[4:105], alone[0][:101])


def test_the_reference_agrees() -> None:
    """The same decoder on the reference operations, as a device without its own would run it."""
    fast = runner()
    weights = random_weights(SPEC, torch.float32, 0)
    slow = TorchRunner(Decoder(SPEC, weights, "cpu", torch.float32, reference), capacity=CAPACITY, rows=8, context=512)
    made = batch([Part(IDS[0], slots(0)[0], 0, 200), Part(IDS[1], slots(0)[1], 0, 3)])
    mine, theirs = fast.forward(made), slow.forward(made)
    assert mine.logits is not None
    assert theirs.logits is not None
    assert (mine.logits - theirs.logits).abs().max() <= 1e-4 * theirs.logits.abs().max()
    for one, flight in ((fast, mine), (slow, theirs)):
        one.sample(flight, Masks())
    assert np.array_equal(fast.read(mine).tokens, slow.read(theirs).tokens)


# -- the token table and the order of calls


def prompts(place: np.ndarray) -> tuple[Part, Part]:
    return Part(IDS[0], place[0], 0, 20), Part(IDS[1], place[1], 0, 9)


def test_one_step_late_equals_one_at_a_time() -> None:
    """forward(N + 1) is launched before read(N); tokens travel over the table only."""
    place = slots(0)
    order = (3, 6)
    eager, late = runner(), runner()

    def made(step: int) -> Batch:
        if step == 0:
            return batch(prompts(place), drawn=draws([19, 28], into=order))
        parts = [Part(IDS[0], place[0], 19 + step, 20 + step), Part(IDS[1], place[1], 8 + step, 9 + step)]
        parts = parts[::-1] if step % 2 else parts  # the order in the batch does not matter
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
    found.append(late.read(last).tokens.tolist())
    assert found == wanted
    assert len({token for pair in wanted for token in pair}) > 3


def test_fed_tokens_equal_given_tokens() -> None:
    place, engine = slots(0), runner()
    first = engine.forward(batch(prompts(place), drawn=draws([19, 28], into=[5, 2])))
    engine.sample(first, Masks())
    tokens = engine.read(first).tokens
    ids = IDS.copy()
    ids[0, 20], ids[1, 9] = tokens
    parts = [Part(ids[0], place[0], 20, 21), Part(ids[1], place[1], 9, 10)]
    given_, fed = engine.forward(batch(parts)), engine.forward(batch(parts, feeds={0: 5, 1: 2}))
    assert given_.logits is not None
    assert fed.logits is not None
    assert torch.equal(given_.logits, fed.logits)


def test_a_draw_that_failed_does_not_break_the_next_batch() -> None:
    place, engine = slots(0), runner()
    nothing = np.zeros(5, np.uint32)
    first = engine.forward(batch(prompts(place), drawn=draws([19, 28], into=[0, 1])))
    engine.sample(first, Masks(allowed=((0, nothing),)))
    parts = [Part(IDS[0], place[0], 20, 21), Part(IDS[1], place[1], 9, 10)]
    second = engine.forward(batch(parts, drawn=draws([0, 1]), feeds={0: 0, 1: 1}))
    found = engine.read(first).tokens
    assert found[0] == -1
    assert found[1] >= 0
    engine.sample(second, Masks())
    assert (engine.read(second).tokens >= 0).all()


def test_several_draws_and_targets_share_rows() -> None:
    engine, place = runner(), slots(0)
    targets = Targets(np.array([4, 19, 4], np.int32), np.array([7, 8, 9], np.int32))
    drawn = draws([19, 19, 4], into=[0, 1, 2], temperature=[0, 5, 0], seeds=3, positions=20, logprobs=[2, 0, -1])
    flight = engine.forward(batch(prompts(place), drawn=drawn, targets=targets))
    logits = flight.logits
    assert logits is not None
    assert len(logits) == 2
    engine.sample(flight, Masks())
    found = engine.read(flight)
    logprobs = torch.log_softmax(logits, -1)
    assert np.allclose(found.targets, logprobs[[0, 1, 0], [7, 8, 9]], atol=1e-5)
    assert found.tokens[[0, 2]].tolist() == [int(logits[1].argmax()), int(logits[0].argmax())]
    assert found.top_ids[0].tolist() == logits[1].topk(2).indices.tolist()
    assert found.top_ids[1:].tolist() == [[-1, -1], [-1, -1]]
    assert found.tokens.dtype == np.int32
    assert found.logprobs.dtype == found.targets.dtype == np.float32


def test_batches_without_draws_or_tokens() -> None:
    engine, place = runner(), slots(0)
    for made in (batch([], drawn=draws([])), batch(prompts(place), drawn=draws([]))):
        flight = engine.forward(made)
        engine.sample(flight, Masks())
        found = engine.read(flight)
        assert found.tokens.shape == found.logprobs.shape == found.targets.shape == (0,)
    targets = Targets(np.array([3], np.int32), np.array([1], np.int32), np.array([4], np.int32))
    scored = engine.forward(batch(prompts(place), drawn=draws([]), targets=targets))
    engine.sample(scored, Masks())
    found = engine.read(scored)
    assert np.isfinite(found.targets).all()
    assert found.target_ids.shape == found.target_logprobs.shape == (1, 4)
    assert (np.diff(found.target_logprobs) <= 0).all()


# -- sizes


def test_figures_of_a_model() -> None:
    assert kv_bytes_per_token(SPEC, torch.bfloat16) == 2 * 2 * 2 * 16 * 2
    weights = random_weights(SPEC, torch.float32)
    assert weight_bytes(SPEC, torch.float32) == 4 * (
        sum(w.numel() for w in weights.values()) + weights["embed"].numel()
    )


def test_default_capacity() -> None:
    each, weights = kv_bytes_per_token(SPEC, torch.float32), weight_bytes(SPEC, torch.float32)
    assert default_capacity(SPEC, torch.float32, context=512, memory=weights + 512 * each) == 512
    assert default_capacity(SPEC, torch.float32, context=512, memory=weights + 8000 * each) == 2000
    assert default_capacity(SPEC, torch.float32, context=512, memory=1 << 50) == 65_536
    assert default_capacity(SPEC, torch.float32, context=100_000, memory=1 << 50) == 100_000
    with pytest.raises(ModelError, match=r"needs .* MiB for weights and .* MiB for the KV of one context of 512"):
        default_capacity(SPEC, torch.float32, context=512, memory=weights + 511 * each)


def test_free_memory_is_plausible() -> None:
    assert 1 << 20 < free_memory() < 1 << 50


@pytest.mark.parametrize("field", ["capacity", "rows", "context", "threads"])
def test_sizes_that_make_no_sense(field: str) -> None:
    with pytest.raises(EngineError, match=f"{field}=-1: must be at least 1"):
        runner(**{field: -1})


def test_a_context_longer_than_the_model() -> None:
    with pytest.raises(EngineError, match="context=513: the model 'tiny' has 512"):
        runner(context=513)


def test_a_pool_that_does_not_fit() -> None:
    with pytest.raises(ModelError, match=r"capacity=\d+: no room for a KV pool of .* GiB; ask for less"):
        runner(capacity=1 << 42)


def test_build() -> None:
    asked: list[torch.dtype] = []

    def load(dtype: torch.dtype) -> dict[str, torch.Tensor]:
        asked.append(dtype)
        return random_weights(SPEC, dtype)

    threads = torch.get_num_threads()
    made = build(Config(dtype="float32", threads=threads, kv_tokens=700, max_running=5), SPEC, load)
    assert (made.capacity, made.rows, made.context, made.dtype_name) == (700, 5, 512, "float32")
    assert made.threads == threads
    assert build(Config(context=100, threads=threads), SPEC, load).context == 100
    assert asked == [torch.float32, native_dtype()]
    with pytest.raises(EngineError, match="context=1000: the model 'tiny' has 512"):
        build(Config(context=1000), SPEC, load)
    assert len(asked) == 2
