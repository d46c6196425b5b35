"""What the interpreter is told to compute like a GPU: bfloat16 and the rows of products."""

from __future__ import annotations

import pytest
import torch

triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402

from .device import DEVICE, random  # noqa: E402

pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(DEVICE == "cuda", reason="a GPU has several instructions, for tiles of several sizes"),
]


@triton.jit
def _numbers(a_ptr: tl.tensor, b_ptr: tl.tensor, out_ptr: tl.tensor, size: tl.constexpr) -> None:
    at = tl.arange(0, size)
    a, b = tl.load(a_ptr + at), tl.load(b_ptr + at)
    tl.store(out_ptr + at, a * b + at.to(tl.bfloat16))


@triton.jit
def _product(a_ptr: tl.tensor, b_ptr: tl.tensor, out_ptr: tl.tensor, count: tl.constexpr) -> None:
    rows, columns = tl.arange(0, count), tl.arange(0, 32)
    a = tl.load(a_ptr + rows[:, None] * 32 + columns[None, :])
    b = tl.load(b_ptr + columns[:, None] * 32 + columns[None, :])
    tl.store(out_ptr + rows[:, None] * 32 + columns[None, :], tl.dot(a, b, input_precision="ieee"))


def test_bfloat16_has_torchs_bits() -> None:
    a, b = random(1024, dtype=torch.bfloat16), random(1024, seed=1, dtype=torch.bfloat16)
    a[:4] = torch.tensor([torch.inf, -torch.inf, torch.nan, 65000.0])
    out = torch.empty_like(a)
    _numbers[(1,)](a, b, out, 1024)
    wanted = a * b + torch.arange(1024, device=a.device).to(torch.bfloat16)
    assert torch.equal(out.nan_to_num(7), wanted.nan_to_num(7))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_row_of_a_product_does_not_know_the_others(dtype: torch.dtype) -> None:
    a, b = random(64, 32, dtype=dtype), random(32, 32, seed=1, dtype=dtype)
    whole = torch.empty(64, 32, device=DEVICE)
    _product[(1,)](a, b, whole, 64)
    assert torch.allclose(whole.double(), a.double() @ b.double(), rtol=1e-5, atol=1e-5)
    part = torch.empty(16, 32, device=DEVICE)
    for begin in range(49):
        _product[(1,)](a[begin:].contiguous(), b, part, 16)
        assert torch.equal(part, whole[begin : begin + 16])
