"""Device operations. In: the name of a device, and how weights are kept there. Out: the implementation of `Ops`; picked
here and nowhere else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ramet.frontend.errors import ModelError
from ramet.kernels.ops import Ops

if TYPE_CHECKING:  # the native path on the CPU imports this package, and torch never
    import torch


def ops(device: str | torch.device, *, weights: str = "dense", deterministic: bool = False) -> Ops:
    """The implementation for `device`: torch operations that are fast and batch-invariant on "cpu", Triton kernels on
    "cuda". `weights` ("dense"; on cuda also "int8", "int4", "fp8") and `deterministic` (on the CPU every result is) are
    `TritonOps`'s. Raises `ModelError` for a device or weights that have no kernels, or when Triton is missing."""
    import torch

    kind = torch.device(device).type
    if kind == "cpu":
        if weights != "dense":
            raise ModelError(f"weights={weights!r}: the CPU keeps the model's dtype; use 'dense'")
        from ramet.kernels.cpu import operations

        return operations
    if kind == "cuda":
        from ramet.kernels.triton import TritonOps

        return TritonOps(weights, deterministic)
    raise ModelError(f"device={str(device)!r} has no kernels; use 'cpu' or 'cuda'")
