"""On the CPU a token's bits depend on nothing but its own inputs: not on its neighbours, its row, or the number of
rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.kernels.cpu import operations as cpu
from ramet.kernels.ops import Angles, HeadNorms, Layout, Norm
from ramet.runtime.batch import Masks

from .ragged import NO_TARGETS, Part, batch, draws

SHAPES = [(960, 576), (576, 1536), (96, 64), (33, 48), (997, 64), (64, 176), (2048, 2048)]
ROWS = [1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 13, 16, 17, 31, 33, 64, 65, 100, 129, 200]
DTYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", [False, True])
def test_linear(shape: tuple[int, int], dtype: torch.dtype, bias: bool) -> None:
    torch.manual_seed(0)
    layer = cpu.pack(torch.randn(shape).to(dtype), torch.randn(shape[0]).to(dtype) if bias else None)
    x = torch.randn(200, shape[1]).to(dtype)
    whole = cpu.linear(x, layer)
    for rows in ROWS:
        for first in (0, (200 - rows) // 3, 200 - rows):
            assert torch.equal(cpu.linear(x[first : first + rows].contiguous(), layer), whole[first : first + rows])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [16, 48, 576, 997, 1536])
def test_rmsnorm_and_silu(width: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    norm = Norm(torch.randn(width), torch.tensor(1e-6))
    x, delta, pairs = torch.randn(200, width), torch.randn(200, width).to(dtype), torch.randn(200, 2 * width).to(dtype)
    residual = x.clone()
    normed, gated = cpu.rmsnorm(residual, delta, norm, dtype), cpu.silu_mul(pairs)
    for rows in ROWS:
        for first in (0, 200 - rows):
            some = slice(first, first + rows)
            mine = x[some].clone()
            assert torch.equal(cpu.rmsnorm(mine, delta[some], norm, dtype), normed[some])
            assert torch.equal(mine, residual[some])
            assert torch.equal(cpu.silu_mul(pairs[some].clone()), gated[some])


class World:
    """A few sequences, their q, k and v by position, and what attention gives when each is computed alone and at
    once."""

    def __init__(self, layout: Layout, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        self.layout, self.dtype = layout, dtype
        dim = layout.head_dim
        angle = torch.arange(512)[:, None] * torch.linspace(1, 0.01, dim // 2)
        self.angles = Angles(angle.cos(), angle.sin())
        self.norms = HeadNorms(torch.randn(layout.heads + layout.kv_heads, dim), torch.tensor(1e-6))
        self.qkv = torch.randn(3, 400, (layout.heads + 2 * layout.kv_heads) * dim).to(dtype)
        self.alone = [self.run([(s, 0, 400)], self.slots(0))[0] for s in range(3)]

    def slots(self, seed: int) -> np.ndarray:
        return np.random.default_rng(seed).permutation(1300)[:1200].reshape(3, 400).astype(np.int32)

    def fresh(self) -> torch.Tensor:
        shape = (2, self.layout.kv_heads, 1300, self.layout.head_dim)
        return torch.full(shape, torch.nan, dtype=self.dtype)

    def run(
        self, spans: list[tuple[int, int, int]], slots: np.ndarray, cache: torch.Tensor | None = None
    ) -> list[torch.Tensor]:
        cache = self.fresh() if cache is None else cache
        zeros = np.zeros(400, np.int32)
        made = batch([Part(zeros, slots[s], start, stop) for s, start, stop in spans])
        plan = cpu.plan(made, self.layout, self.angles, 1300)
        qkv = torch.zeros(plan.padded, self.qkv.shape[-1], dtype=self.dtype)
        qkv[: len(made)] = torch.cat([self.qkv[s, start:stop] for s, start, stop in spans])
        q = cpu.rope_store(qkv, self.norms, self.layout, plan, cache)
        found = [cpu.attention(q, self.layout, plan, cache, w, self.dtype) for w in self.layout.windows]
        both = torch.cat(found, -1)[: len(made)]
        return list(both.split([stop - start for _, start, stop in spans]))


@pytest.fixture(scope="module", params=[(6, 2, 16), (9, 3, 64), (8, 2, 32), (4, 4, 80)], ids=str)
def layout(request: pytest.FixtureRequest) -> Layout:
    heads, kv_heads, dim = request.param
    return Layout(heads, kv_heads, dim, dim**-0.5, (None, 37))


@pytest.fixture(scope="module", params=DTYPES, ids=str)
def world(layout: Layout, request: pytest.FixtureRequest) -> World:
    return World(layout, request.param)


@pytest.mark.parametrize("chunk", [1, 7, 64, 512])
def test_attention_chunked(world: World, chunk: int) -> None:
    cache, slots = world.fresh(), world.slots(chunk)
    for start in range(0, 400, chunk):
        stop = min(400, start + chunk)
        found = world.run([(1, start, stop)], slots, cache)
        assert torch.equal(found[0], world.alone[1][start:stop])


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_attention_ragged(world: World, data: st.DataObject) -> None:
    cache, slots = world.fresh(), world.slots(data.draw(st.integers(1, 100)))
    done = [0, 0, 0]
    for _ in range(data.draw(st.integers(1, 6))):
        spans = []
        for s in data.draw(st.permutations(range(3))):
            count = data.draw(st.sampled_from([0, 1, 1, 2, 3, 8, 9, 50, 128, 130, 250]))
            stop = min(400, done[s] + count)
            if stop > done[s]:
                spans.append((s, done[s], stop))
                done[s] = stop
        if spans:
            for (s, start, stop), found in zip(spans, world.run(spans, slots, cache), strict=True):
                assert torch.equal(found, world.alone[s][start:stop])


@pytest.mark.parametrize("vocab", [997, 49152])
def test_sampling(vocab: int) -> None:
    torch.manual_seed(0)
    logits = torch.randn(9, vocab) * 3
    options = {
        "temperature": [0, 1, 0.7, 1, 0.5, 1, 1.3, 0, 1],
        "top_k": [0, 0, 5, 0, 50, 0, 200, 3, 0],
        "top_p": [1, 1, 1, 0.9, 0.8, 1, 1, 0.5, 0.99],
        "min_p": [0, 0, 0, 0, 0, 0.1, 0, 0, 0],
        "logprobs": [0, -1, 3, 20, 0, 1, 5, 2, 0],
        "seeds": range(9),
        "positions": range(9),
    }
    at = np.arange(9, dtype=np.int32)
    whole = cpu.sample(logits, draws(range(9), **options), at, NO_TARGETS, at[:0], Masks())
    for r in range(9):
        one = draws([0], **{name: values[r] for name, values in options.items()})
        found = cpu.sample(logits[r : r + 1].clone(), one, at[:1], NO_TARGETS, at[:0], Masks())
        assert found.tokens[0] == whole.tokens[r]
        assert torch.equal(found.logprobs, whole.logprobs[r : r + 1]) or options["logprobs"][r] < 0
        width = max(0, options["logprobs"][r])
        assert torch.equal(found.top_ids[0], whole.top_ids[r, :width])
        assert torch.equal(found.top_logprobs[0], whole.top_logprobs[r, :width])
