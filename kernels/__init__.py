"""Device operations. In: the name of a device. Out: the module that implements `Ops` there; picked here and nowhere
else."""

from __future__ import annotations

import torch

from ramet.frontend.errors import ModelError
from ramet.kernels.ops import Ops


def ops(device: str | torch.device) -> Ops:
    """The implementation for `device`: torch operations that are fast and batch-invariant on "cpu", the plain
    reference on "cuda". Raises `ModelError` for another device."""
    kind = torch.device(device).type
    if kind == "cpu":
        from ramet.kernels import cpu

        return cpu
    if kind == "cuda":
        from ramet.kernels import reference

        return reference
    raise ModelError(f"device={str(device)!r} has no kernels; use 'cpu' or 'cuda'")
