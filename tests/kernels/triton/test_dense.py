"""Norms, rotation, activation, embedding and token table against the reference, in every shape that may occur."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from ramet.kernels import reference
from ramet.kernels.ops import HeadNorms, Layout, Norm

pytest.importorskip("triton")

from ramet.kernels.triton.norms import rmsnorm
from ramet.kernels.triton.rope import rope_store
from ramet.kernels.triton.silu import silu_mul
from ramet.kernels.triton.table import embedding, gather, scatter
from ramet.runtime.models.decoder import rope_angles
from ramet.runtime.models.spec import Rope

from .device import DEVICE, DTYPES, close, random, tolerance

pytestmark = [pytest.mark.triton, pytest.mark.gpu]
EVERY = pytest.mark.parametrize("dtype", DTYPES, ids=str)
EPS = torch.tensor(1e-5, device=DEVICE)


@dataclass(frozen=True)
class Rows:
    """A plan as far as rotation goes."""

    tokens: int
    padded: int
    positions: torch.Tensor
    slots: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor


def integers(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32, device=DEVICE)


def inside_nan(x: torch.Tensor, left: int, right: int) -> torch.Tensor:
    """`x` as a view of rows that have nan on both sides: another row stride, and poison beyond the ends."""
    wide = torch.full((x.shape[0] + 2, left + x.shape[1] + right), torch.nan, dtype=x.dtype, device=DEVICE)
    view = wide[1:-1, left : left + x.shape[1]]
    view.copy_(x)
    return view


@EVERY
@pytest.mark.parametrize("width", [1, 7, 64, 576, 1000, 8192, 8200, 10240])
@pytest.mark.parametrize("add", [False, True])
def test_rmsnorm(dtype: torch.dtype, width: int, add: bool) -> None:
    norm = Norm(random(width, seed=2), EPS)
    start, delta = random(3, width), random(3, width, seed=1, dtype=dtype) if add else None
    wanted_sum, sum_ = start.double(), start.clone()
    wanted = reference.rmsnorm(wanted_sum, None if delta is None else delta.double(), norm, torch.float64)
    found = rmsnorm(sum_, delta, norm, dtype)
    assert found.dtype == dtype
    close(found, wanted, tolerance(dtype))
    close(sum_, wanted_sum, tolerance(torch.float32))
    assert add or bool((sum_ == start).all())


@pytest.mark.parametrize("width", [60, 9000])
def test_rmsnorm_reads_and_writes_its_rows_alone(width: int) -> None:
    norm = Norm(random(width, seed=2), EPS)
    residual, delta = inside_nan(random(4, width), 3, 5), inside_nan(random(4, width, seed=1), 1, 0)
    other, plain = residual.clone(), delta.contiguous()
    found, wanted = rmsnorm(residual, delta, norm, torch.float32), rmsnorm(other, plain, norm, torch.float32)
    assert bool((found == wanted).all()) and bool((residual == other).all())
    outside = residual.as_strided((4, 3), residual.stride(), residual.storage_offset() - 3)
    assert bool(outside.isnan().all())


def test_a_row_of_rmsnorm_does_not_depend_on_its_neighbours() -> None:
    norm, rows = Norm(random(576, seed=2), EPS), random(9, 576)
    together = rmsnorm(rows.clone(), None, norm, torch.float32)
    for r in range(9):
        assert bool((rmsnorm(rows[r : r + 1].clone(), None, norm, torch.float32) == together[r]).all())


def test_zeros_stay_zeros_and_no_rows_are_no_launch() -> None:
    norm = Norm(random(64), EPS)
    assert bool((rmsnorm(torch.zeros(2, 64, device=DEVICE), None, norm, torch.float32) == 0).all())
    assert rmsnorm(random(0, 64), None, norm, torch.float16).shape == (0, 64)
    assert silu_mul(random(0, 64)).shape == (0, 32)
    assert embedding(torch.zeros(0, dtype=torch.int64, device=DEVICE), random(5, 8)).shape == (0, 8)
    assert gather(integers(), integers(), random(4).long()).shape == (0,)


@EVERY
@pytest.mark.parametrize("width", [1, 5, 1536, 2050])
def test_silu_mul(dtype: torch.dtype, width: int) -> None:
    x = random(3, 2 * width, dtype=dtype)
    found = silu_mul(inside_nan(x, 1, 2))
    assert found.dtype == dtype and found.is_contiguous()
    close(found, reference.silu_mul(x.double()), tolerance(dtype))


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
def test_silu_of_large_gates_is_finite() -> None:
    found = silu_mul(torch.tensor([[-200.0, 200.0, -80.0, 2.0, 3.0, 4.0]], device=DEVICE))
    close(found, torch.tensor([[0.0, 600.0, 0.0]]), 1e-6)


SHAPES = [(2, 1, 2), (3, 3, 16), (9, 3, 64), (8, 2, 80), (16, 8, 128), (40, 8, 96)]


@EVERY
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("norm", [False, True])
def test_rope_store(dtype: torch.dtype, shape: tuple[int, int, int], norm: bool) -> None:
    heads, kv_heads, dim = shape
    layout, tokens, capacity = Layout(heads, kv_heads, dim, 1.0), 5, 11
    angles = rope_angles(Rope(), dim, 40, torch.device(DEVICE))
    positions, slots = integers(0, 39, 7, 8, 3), integers(9, 0, 4, 5, 10)
    norms = HeadNorms(random(heads + kv_heads, dim, seed=3), EPS) if norm else None
    qkv = random(tokens, (heads + 2 * kv_heads) * dim, dtype=dtype)
    cache = torch.full((2, kv_heads, capacity, dim), torch.nan, dtype=dtype, device=DEVICE)
    plan = Rows(tokens, tokens, positions, slots, angles.cos, angles.sin)
    q = rope_store(inside_nan(qkv, 8, 8), norms, layout, plan, cache)
    assert q.dtype == dtype and q.shape == (tokens, heads, dim)
    wanted, wanted_cache = rotated(qkv, norms, layout, plan, capacity)
    close(q, wanted, tolerance(dtype))
    unwritten = [slot for slot in range(capacity) if slot not in slots.tolist()]
    assert bool(cache[:, :, unwritten].isnan().all())
    close(cache[:, :, slots.long()], wanted_cache[:, :, slots.long()], tolerance(dtype))
    assert bool((cache[1][:, slots.long()] == wanted_cache[1][:, slots.long()].to(dtype)).all()), "v is copied"


def rotated(
    qkv: torch.Tensor, norms: HeadNorms | None, layout: Layout, plan: Rows, capacity: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """q and the cache of the reference, from float32 values."""
    at = plan.positions.long()
    its = reference.RaggedPlan(len(at), len(at), plan.slots.long(), plan.cos[at][:, None], plan.sin[at][:, None], ())
    cache = torch.zeros(2, layout.kv_heads, capacity, layout.head_dim, device=DEVICE)
    return reference.rope_store(qkv.float(), norms, layout, its, cache), cache


def test_padded_rows_write_the_dump_slot_alone() -> None:
    layout, capacity = Layout(4, 2, 16, 1.0), 6
    angles = rope_angles(Rope(), 16, 8, torch.device(DEVICE))
    cache = torch.zeros(2, 2, capacity + 1, 16, device=DEVICE)
    plan = Rows(2, 5, integers(3, 4, 0, 0, 0), integers(1, 2, *[capacity] * 3), angles.cos, angles.sin)
    qkv = random(5, 8 * 16)
    q = rope_store(qkv, None, layout, plan, cache)
    assert bool(q.isfinite().all())
    written = (cache != 0).any(-1).any(0).any(0)
    assert written.nonzero().flatten().tolist() == [1, 2, capacity]
    alone = torch.zeros_like(cache)
    plan = Rows(2, 2, plan.positions[:2], plan.slots[:2], angles.cos, angles.sin)
    assert bool((rope_store(qkv[:2], None, layout, plan, alone) == q[:2]).all())
    assert bool((alone[:, :, :capacity] == cache[:, :, :capacity]).all())


def test_rope_store_writes_a_cache_of_other_strides() -> None:
    layout = Layout(4, 2, 16, 1.0)
    angles = rope_angles(Rope(), 16, 8, torch.device(DEVICE))
    plan = Rows(3, 3, integers(0, 1, 2), integers(5, 0, 3), angles.cos, angles.sin)
    plain = torch.zeros(2, 2, 6, 16, device=DEVICE)
    other = torch.zeros(6, 2, 2, 24, device=DEVICE).permute(1, 2, 0, 3)[..., 4:20]
    qkv = random(3, 8 * 16)
    q = rope_store(qkv, None, layout, plan, plain)
    assert bool((rope_store(qkv, None, layout, plan, other) == q).all())
    assert bool((other == plain).all())


@EVERY
@pytest.mark.parametrize("width", [3, 576, 2048])
@pytest.mark.parametrize("kind", [torch.int32, torch.int64])
def test_embedding(dtype: torch.dtype, width: int, kind: torch.dtype) -> None:
    table, tokens = random(17, width, dtype=dtype), torch.tensor([16, 0, 3, 3], dtype=kind, device=DEVICE)
    found = embedding(tokens, table)
    assert found.dtype == torch.float32
    assert bool((found == table[tokens.long()].float()).all())
    found.add_(1)
    assert bool((embedding(tokens, table) == table[tokens.long()].float()).all()), "a fresh tensor"


@pytest.mark.parametrize("count", [1, 255, 256, 700])
def test_token_table(count: int) -> None:
    rows = 900
    last = torch.full((rows + 1,), -7, dtype=torch.int64, device=DEVICE)
    generator = torch.Generator().manual_seed(count)
    into = torch.randperm(rows, generator=generator)[:count].to(DEVICE)
    tokens = torch.randint(-1, 50, (count,), generator=generator).to(DEVICE)
    scatter(tokens, into.int(), last)
    wanted = torch.full_like(last, -7)
    wanted[into] = tokens.clamp(min=0)
    assert bool((last == wanted).all())
    feed = torch.where(torch.rand(count, generator=generator).to(DEVICE) < 0.5, into, -1).int()
    ids = torch.randint(0, 50, (count,), generator=generator).int().to(DEVICE)
    found = gather(ids, feed, last)
    assert found.dtype == torch.int64
    assert bool((found == torch.where(feed < 0, ids.long(), last[feed.long()])).all())


def test_padded_draws_write_the_dump_row_alone() -> None:
    last = torch.full((4,), -7, dtype=torch.int64, device=DEVICE)
    scatter(torch.tensor([5, -1, 8, 9], device=DEVICE), integers(2, 0, 3, 3), last)
    assert last[:3].tolist() == [0, -7, 5]
    assert int(last[3]) in (8, 9)
