"""Where the kernel tests run: on a GPU with the real compiler, else on CPU tensors in Triton's interpreter."""

from __future__ import annotations

import torch

from ramet.kernels.triton.interpreted import make_faithful

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    make_faithful()
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Normal numbers `shape` on the device; the same on every device."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(DEVICE)


def tolerance(dtype: torch.dtype) -> float:
    """A few roundings of `dtype`, relative to the largest value."""
    return {torch.float32: 4e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[dtype]


def close(found: torch.Tensor, wanted: torch.Tensor, bound: float) -> None:
    """Equal shapes, all finite, and no difference above `bound` times the largest value (at least 1)."""
    assert found.shape == wanted.shape
    assert bool(found.isfinite().all())
    worst = (found.double().cpu() - wanted.double().cpu()).abs().max() if found.numel() else torch.tensor(0.0)
    assert float(worst) <= bound * max(1.0, float(wanted.abs().max()) if wanted.numel() else 1.0)
