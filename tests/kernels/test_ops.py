"""Every operation of both implementations against its definition in float64."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
import torch

from ramet.frontend.errors import ModelError
from ramet.kernels import ops, reference
from ramet.kernels.cpu import operations as cpu
from ramet.kernels.ops import Angles, HeadNorms, Layout, Norm
from ramet.kernels.triton import TritonOps

from .ragged import Part, batch, softmax

BOTH = pytest.mark.parametrize("impl", [reference, cpu], ids=["reference", "cpu"])
EPS = torch.tensor(1e-5)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def close(found: torch.Tensor, wanted: np.ndarray, tolerance: float = 2e-6) -> None:
    assert found.shape == wanted.shape
    assert np.abs(found.double().numpy() - wanted).max() <= tolerance * max(1.0, np.abs(wanted).max())


def test_devices_without_kernels_are_refused() -> None:
    assert ops("cpu") is cpu
    assert ops("cuda:1", weights="int8") == TritonOps("int8")
    with pytest.raises(ModelError, match="weights='int8': the CPU keeps"):
        ops("cpu", weights="int8")
    with pytest.raises(ModelError, match="device='meta' has no kernels"):
        ops("meta")


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
def test_linear(impl: ModuleType, dtype: torch.dtype, bias: bool) -> None:
    weight, x, b = random(40, 24).to(dtype), random(7, 24, seed=1).to(dtype), random(40, seed=2).to(dtype)
    wanted = x.double() @ weight.double().T + (b.double() if bias else 0)
    found = impl.linear(x, impl.pack(weight, b if bias else None))
    assert found.dtype == dtype
    close(found, wanted.numpy(), 2e-6 if dtype == torch.float32 else 2**-8)


@BOTH
def test_rmsnorm_adds_the_delta_and_norms(impl: ModuleType) -> None:
    residual, delta, weight = random(5, 48), random(5, 48, seed=1), random(48, seed=2)
    total = residual.double() + delta.double()
    wanted = total / torch.sqrt((total**2).mean(-1, keepdim=True) + 1e-5) * weight.double()
    found = impl.rmsnorm(residual, delta, Norm(weight, EPS), torch.float32)
    close(found, wanted.numpy())
    close(residual, total.numpy())
    assert impl.rmsnorm(residual, None, Norm(weight, EPS), torch.bfloat16).dtype == torch.bfloat16


@BOTH
def test_rmsnorm_of_zeros_is_zero(impl: ModuleType) -> None:
    assert torch.equal(
        impl.rmsnorm(torch.zeros(4, 8), None, Norm(torch.ones(8), EPS), torch.float32), torch.zeros(4, 8)
    )


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_silu_mul(impl: ModuleType, dtype: torch.dtype) -> None:
    x = random(6, 96).mul(5).to(dtype)
    x[0, :4] = torch.tensor([-1000.0, 1000.0, 0.0, -90.0])
    gate, up = x.double().numpy()[:, :48], x.double().numpy()[:, 48:]
    with np.errstate(over="ignore"):
        wanted = gate / (1 + np.exp(-gate)) * up
    close(impl.silu_mul(x), wanted, 1e-6 if dtype == torch.float32 else 2**-7)


@BOTH
def test_embedding_is_a_fresh_float32_tensor(impl: ModuleType) -> None:
    table = random(10, 8)
    found = impl.embedding(torch.tensor([3, 3, 0, 9]), table)
    assert torch.equal(found, table[[3, 3, 0, 9]])
    found.zero_()
    assert table[3].abs().sum() > 0


LAYOUT = Layout(heads=6, kv_heads=2, head_dim=16, scale=0.25, windows=(None, 5, 140))
ANGLE = np.arange(400)[:, None] * np.linspace(1.0, 0.01, 8)[None]
ANGLES = Angles(torch.from_numpy(np.cos(ANGLE)).float(), torch.from_numpy(np.sin(ANGLE)).float())


def parts(*spans: tuple[int, int]) -> list[Part]:
    order = np.random.default_rng(0).permutation(1000).astype(np.int32)
    ends = np.cumsum([stop for _, stop in spans])
    return [Part(np.zeros(n, np.int32), order[end - n : end], a, n) for (a, n), end in zip(spans, ends, strict=True)]


@BOTH
@pytest.mark.parametrize("norms", [False, True])
def test_rope_store(impl: ModuleType, norms: bool) -> None:
    made = batch(parts((0, 3), (7, 8), (20, 25)))
    plan = impl.plan(made, LAYOUT, ANGLES, 1000)
    qkv = random(plan.padded, 10 * 16)
    weight = random(8, 16, seed=3)
    x = qkv.double().numpy().reshape(-1, 10, 16)[: len(made)].copy()
    if norms:
        x[:, :8] *= weight.double().numpy() / np.sqrt((x[:, :8] ** 2).mean(-1, keepdims=True) + 1e-5)
    c, s = np.cos(ANGLE[made.positions])[:, None], np.sin(ANGLE[made.positions])[:, None]
    a, b = x[:, :8, :8].copy(), x[:, :8, 8:].copy()
    x[:, :8] = np.concatenate((a * c - b * s, b * c + a * s), -1)
    cache = torch.full((2, 2, 1000, 16), torch.nan)
    q = impl.rope_store(qkv, HeadNorms(weight, EPS) if norms else None, LAYOUT, plan, cache)
    close(q[: len(made)], x[:, :6], 1e-6)
    close(cache[0][:, made.slots].transpose(0, 1), x[:, 6:8], 1e-6)
    close(cache[1][:, made.slots].transpose(0, 1), x[:, 8:], 1e-6)
    assert int((~cache.isnan()).sum()) == 2 * 2 * 16 * len(made)  # and no other slot was written


@BOTH
@pytest.mark.parametrize("window", LAYOUT.windows)
@pytest.mark.parametrize(
    "spans",
    [
        [(0, 1)],
        [(0, 128)],
        [(299, 300), (127, 128), (128, 129)],
        [(10, 300)],
        [(0, 3), (5, 8), (200, 201), (140, 149), (0, 30)],
    ],
)
def test_attention(impl: ModuleType, window: int | None, spans: list[tuple[int, int]]) -> None:
    made = batch(parts(*spans))
    plan = impl.plan(made, LAYOUT, ANGLES, 1050)
    cache = torch.full((2, 2, 1050, 16), torch.nan)
    cache[:, :, made.kv_indices] = random(2, 2, len(made.kv_indices), 16, seed=4)
    q = random(plan.padded, 6, 16, seed=5)
    found = impl.attention(q.clone(), LAYOUT, plan, cache, window, torch.float32)
    assert found.shape == (plan.padded, 96)
    row = 0
    for part in parts(*spans):
        for position in range(part.start, part.stop):
            low = 0 if window is None else max(0, position - window + 1)
            seen = part.slots[low : position + 1]
            keys, values = (cache[i][:, seen].double().numpy().repeat(3, 0) for i in (0, 1))
            weights = softmax(np.einsum("hd,hsd->hs", q[row].double().numpy(), keys) * LAYOUT.scale)
            close(found[row], np.einsum("hs,hsd->hd", weights, values).reshape(-1), 5e-6)
            row += 1
    assert not found[row:].any()
