"""Sampling for the torch operations on the CPU. In: logits as a tensor. Out: `Drawn`. What is done is `draw`'s."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ramet.kernels.cpu.draw import draw
from ramet.kernels.ops import Drawn
from ramet.runtime.batch import I32, Draws, Masks, Targets


def sample(logits: torch.Tensor, draws: Draws, at: I32, targets: Targets, target_at: I32, masks: Masks) -> Drawn:
    """See `Ops.sample`."""
    found = draw(logits.numpy(), draws, at, targets, target_at, masks)
    rest = (
        found.logprobs,
        found.top_ids,
        found.top_logprobs,
        found.targets,
        found.target_ids,
        found.target_logprobs,
    )
    return Drawn(torch.from_numpy(found.tokens.astype(np.int64)), *map(_tensor, rest))


def _tensor(array: NDArray[Any]) -> torch.Tensor:
    """Torch has no tensors that cannot be written to."""
    return torch.from_numpy(array if array.flags.writeable else array.copy())
