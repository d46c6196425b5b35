"""Graphs without a GPU: buckets, which keys are captured, padding, and equality with eager steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.runtime.batch import Batch, Masks, Targets
from ramet.runtime.cuda import CudaRunner
from ramet.runtime.device import Closure, HostDevice
from ramet.runtime.graphs import aligned, bucket, buckets, filled
from ramet.runtime.models.decoder import Decoder
from ramet.runtime.models.spec import Rope, Spec

from ..kernels.ragged import Part, batch, draws
from . import hosted

SPEC = Spec("llama", "tiny", 2, 64, 6, 2, 16, 96, 131, 512, 1e-5, Rope(), tied=True, window=150, windowed=(True, False))
IDS = np.random.default_rng(0).integers(0, 131, (8, 300)).astype(np.int32)
PLACE = np.random.default_rng(1).permutation(2400).reshape(8, 300).astype(np.int32)


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    torch.set_num_threads(1)
    return hosted.decoder(SPEC)


def made(decoder: Decoder, **fields: object) -> CudaRunner:
    return hosted.runner(decoder, **{"capacity": 2400, **fields})  # type: ignore[arg-type]


# -- buckets


def test_buckets() -> None:
    assert buckets(256) == (1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64, *range(80, 257, 16))
    assert buckets(1) == (1,)
    assert buckets(3) == (1, 2, 4)
    assert buckets(8) == (1, 2, 4, 8)
    assert buckets(65) == (1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64, 80)


@given(count=st.integers(1, 300), most=st.integers(1, 256))
def test_a_bucket_is_the_smallest_that_fits(count: int, most: int) -> None:
    sizes = buckets(most)
    assert sizes[-1] >= most
    found = bucket(count, sizes)
    if found is None:
        assert count > sizes[-1]
    else:
        assert found >= count
        assert all(size < count for size in sizes if size < found)


@given(count=st.integers(0, 300))
def test_what_follows_a_head_is_aligned(count: int) -> None:
    width = aligned(count)
    assert width % 32 == 0
    assert count <= width < count + 32
    assert filled(np.arange(count, dtype=np.int32), width, -5).tolist() == [*range(count), *[-5] * (width - count)]


# -- what is captured when


def decode(sequences: int, at: int = 20, **fields: object) -> Batch:
    parts = [Part(IDS[s], PLACE[s], at, at + 1) for s in range(sequences)]
    return batch(parts, drawn=draws(range(sequences), into=range(sequences), **fields))


def step(runner: CudaRunner, made: Batch, masks: Masks = Masks()) -> list[int]:  # noqa: B008 (it is empty)
    flight = runner.forward(made)
    runner.sample(flight, masks)
    return [int(token) for token in runner.read(flight).tokens]


def kinds(runner: CudaRunner) -> list[tuple[object, ...]]:
    assert runner.graphs is not None
    return sorted((key[0], key[1]) for key in runner.graphs.captured())


def test_the_second_time_is_captured_the_third_replayed(decoder: Decoder) -> None:
    class Counting(HostDevice):
        runs = 0
        captures = 0

        def capture(self, run: Callable[[], None]) -> Closure:
            self.captures += 1
            graph = super().capture(run)

            def counted() -> None:
                self.runs += 1
                graph.replay()

            return Closure(counted)

    device = Counting()
    runner = made(decoder, device=device)
    found = []
    for runs, captures in ((0, 0), (0, 3), (3, 3), (6, 3)):
        found.append(step(runner, decode(3)))
        assert (device.runs, device.captures) == (runs, captures)
    assert kinds(runner) == [("forward", 4), ("head", 4), ("sample", 4)]
    assert found == [found[0]] * 4


def test_warm_captures_all_buckets_of_decode_steps(decoder: Decoder) -> None:
    runner = made(decoder, warm=True)
    each = [(kind, size) for kind in ("forward", "head", "sample") for size in (1, 2, 4, 8)]
    assert kinds(runner) == each
    assert not runner._last.any() or int(runner._last.max()) < SPEC.vocab


def test_warm_leaves_the_pool_as_it_was(decoder: Decoder) -> None:
    """Dummies write the dump slot alone."""
    runner = made(decoder, warm=True)
    assert not runner._cache[..., : runner.capacity, :].any()
    assert runner._cache[..., runner.capacity, :].any()


def test_attention_with_another_launch_list_is_another_graph(decoder: Decoder) -> None:
    runner = made(decoder)
    short, chunk = decode(5), batch([Part(IDS[0], PLACE[0], 0, 7)], drawn=draws([6]))
    for each in (short, chunk) * 2:
        step(runner, each)
    assert runner.graphs is not None
    keys = [key for key in runner.graphs.captured() if key[:2] == ("forward", 8)]
    assert len(keys) == 2


def test_what_fits_no_bucket_runs_eagerly(decoder: Decoder) -> None:
    runner = made(decoder)
    big = batch([Part(IDS[s], PLACE[s], 0, 290) for s in range(2)], drawn=draws([289, 579], into=[0, 1]))
    for _ in range(3):
        step(runner, big)
    assert kinds(runner) == [("sample", 2)]  # two draws are few, whatever they are drawn after


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("CUDA error: out of memory")], ids=repr
)
def test_without_memory_for_a_graph_it_stays_eager(decoder: Decoder, error: Exception) -> None:
    class Full(HostDevice):
        tried = 0

        def capture(self, run: Callable[[], None]) -> Closure:
            self.tried += 1
            raise error

    device = Full()
    runner = made(decoder, device=device)
    wanted = step(made(decoder, graphs=False), decode(3))
    assert [step(runner, decode(3)) for _ in range(4)] == [wanted] * 4
    assert kinds(runner) == []
    assert device.tried == 3


def test_what_cannot_be_captured_is_not_hidden_and_stays_eager(decoder: Decoder) -> None:
    class Broken(HostDevice):
        def capture(self, run: Callable[[], None]) -> Closure:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    runner = made(decoder, device=Broken())
    step(runner, decode(3))
    wanted = step(made(decoder, graphs=False), decode(3))
    for _ in range(3):  # forward, head, sample: each costs one batch
        with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
            step(runner, decode(3))
    assert step(runner, decode(3)) == wanted


# -- padding and equality


def test_padding_goes_to_the_dump_slot_and_the_dump_row(decoder: Decoder) -> None:
    runner = made(decoder)
    place = PLACE[PLACE < 2300].reshape(-1)[:900].reshape(3, 300)
    parts = [Part(IDS[s], place[s], 0, 5) for s in range(3)]
    step(runner, batch(parts, drawn=draws([4, 9, 14], into=[2, 5, 7])))
    free = np.setdiff1d(np.arange(2400), place[:, :5])
    assert not runner._cache[..., torch.from_numpy(free), :].any()
    assert runner._cache[..., 2400, :].any()  # 15 tokens, 16 rows
    assert runner._last[[0, 1, 3, 4, 6]].tolist() == [0] * 5
    assert (runner._last[[2, 5, 7]] > 0).any()


def test_stale_words_of_an_older_batch_are_not_read(decoder: Decoder) -> None:
    """A long step of the same bucket, then a short one; then the short one alone in a fresh runner."""
    used, fresh = made(decoder), made(decoder)
    prompts = batch([Part(IDS[s], PLACE[s], 0, 250) for s in range(8)], drawn=draws([]))
    for runner in (used, fresh):
        runner.read(runner.forward(prompts))
    for _ in range(3):
        step(used, decode(8, 249, temperature=0.8, top_k=9, seeds=range(8)))
    for n in range(3):
        some = decode(5, 30 + n)
        assert step(used, some) == step(fresh, some)


def logits_of(runner: CudaRunner, made: Batch) -> torch.Tensor:
    logits = runner.forward(made).logits
    assert logits is not None
    return logits.clone()


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_graphs_compute_what_eager_steps_compute(decoder: Decoder, data: st.DataObject) -> None:
    graphs, eager = made(decoder), made(decoder, graphs=False)
    done = [0] * 8
    for _ in range(data.draw(st.integers(1, 6))):
        parts = []
        for s in data.draw(st.permutations(range(8)))[: data.draw(st.integers(1, 8))]:
            stop = min(300, done[s] + data.draw(st.sampled_from([1, 1, 1, 2, 9, 70])))
            if stop > done[s]:
                parts.append(Part(IDS[s], PLACE[s], done[s], stop))
                done[s] = stop
        if not parts:
            continue
        last = np.cumsum([part.stop - part.start for part in parts]) - 1
        options = {"temperature": 0.7, "top_p": 0.9, "seeds": 5, "positions": [part.stop for part in parts]}
        some = batch(parts, drawn=draws(last.tolist(), **options))  # type: ignore[arg-type]
        mine, theirs = logits_of(graphs, some), logits_of(eager, some)
        assert (mine - theirs).abs().max() <= 1e-4
        assert step(graphs, some) == step(eager, some)


def test_draws_with_edits_and_logprobs_take_their_own_ways(decoder: Decoder) -> None:
    """A mask fits no bucket of these steps; logprobs and targets go through `Ops.sample`."""
    graphs, eager = made(decoder), made(decoder, graphs=False)
    only = np.zeros(5, np.uint32)
    only[1] = 1 << 3
    masked = Masks(allowed=((1, only),))
    for some, masks in (
        (decode(3), masked),
        (decode(3, logprobs=[2, -1, 0]), Masks()),
        (replace(decode(3), targets=Targets(np.array([2], np.int32), np.array([7], np.int32))), Masks()),
    ):
        found = []
        for runner in (graphs, eager):
            flight = runner.forward(some)
            runner.sample(flight, masks)
            found.append(runner.read(flight))
        for one, other in zip(*[[getattr(f, n) for n in f.__dataclass_fields__] for f in found], strict=True):
            assert np.allclose(one, other, atol=1e-4, equal_nan=True)
        if masks.allowed:
            assert found[0].tokens[1] == 35
        assert graphs._last[:3].tolist() == found[0].tokens.tolist()


def test_more_rows_are_scored_than_there_are_draws(decoder: Decoder) -> None:
    """Logits of 40 rows in a runner whose buckets of draws end at 8."""
    graphs, eager = made(decoder), made(decoder, graphs=False)
    rows = np.arange(40, dtype=np.int32)
    targets = Targets(rows, IDS[0, 1:41].copy(), np.full(40, 3, np.int32))
    some = batch([Part(IDS[0], PLACE[0], 0, 40)], drawn=draws([39]), targets=targets)
    found = []
    for runner in (graphs, eager):
        flight = runner.forward(some)
        runner.sample(flight, Masks())
        found.append(runner.read(flight))
    assert np.allclose(found[0].targets, found[1].targets, atol=1e-4)
    assert len(found[0].targets) == 40
    assert np.array_equal(found[0].target_ids, found[1].target_ids)
    assert found[0].target_ids.shape == (40, 3)
    assert np.array_equal(found[0].tokens, found[1].tokens)
