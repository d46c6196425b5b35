"""Engines in whose every free buffer stands poison: NaN in free KV slots, nonsense in free rows and in fresh memory.

In: an engine core under test. Out: the same, spoilt before each step. Whoever reads what it did not write then gets
other results, or none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from ramet.runtime.batch import RECORD
from ramet.runtime.engine import EngineCore
from ramet.runtime.native import NativeRunner
from ramet.runtime.runner import TorchRunner

BFLOAT16_NAN = 0x7FC0
NONSENSE = 0x7FFFFFF0  # as a token, a slot or a position: beyond every table


def free_slots(core: EngineCore) -> np.ndarray:
    """Slots that nobody owns."""
    slots = core.cache.slots
    return np.flatnonzero(slots._taken_view[: slots.capacity] == 0)


def spoil(core: EngineCore) -> None:
    """Poison all that is free: KV slots, and what rows keep from step to step."""
    runner: Any = core.runner
    slots = free_slots(core)
    if isinstance(runner, TorchRunner):
        with torch.inference_mode():
            runner._cache[:, :, :, torch.from_numpy(slots)] = torch.nan
    else:
        assert isinstance(runner, NativeRunner)
        spec = runner._weights.spec
        pool = runner._kv.bytes.view(np.uint16)
        shape = (spec.layers, 2, spec.kv_heads, runner.capacity, spec.head_dim)
        pool[: np.prod(shape)].reshape(shape)[:, :, :, slots] = BFLOAT16_NAN
        for spare in runner._spare:
            spare.fill(np.nan)
    rows = np.array(core.cache.rows._free, np.int64)
    core.cache.rows.table[rows] = NONSENSE
    with torch.inference_mode():
        runner._last[rows.tolist()] = NONSENSE
    parameters = core.scheduler.parameters
    live = [seq.task for program in core.programs.live.values() for seq in program.sequences.values()]
    rows = np.array(
        [row for row in rows.tolist() if parameters.tasks[row] not in live], np.int64
    )  # of nobody who waits
    for name, (kind, _) in (RECORD.fields or {}).items():
        parameters._records[name][rows] = np.nan if kind == np.float32 else NONSENSE
    for program in core.programs.live.values():
        for seq in program.sequences.values():
            seq.buffer[seq.known + len(getattr(seq.task, "guess", ())) :] = NONSENSE


def _filled(made: Any) -> Any:
    if isinstance(made, torch.Tensor):
        return made.fill_(torch.nan if made.is_floating_point() else 0x5A if made.dtype == torch.uint8 else NONSENSE)
    made.view(np.uint8).fill(0xFF) if made.flags.c_contiguous and made.dtype.hasobject is False else None
    return made


@contextmanager
def fresh_poison() -> Iterator[None]:
    """Memory that is asked for uninitialised comes full of nonsense."""

    def poisonous(make: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: _filled(make(*args, **kwargs))

    with pytest.MonkeyPatch.context() as patch:
        for module in (np, torch):
            for name in ("empty", "empty_like"):
                patch.setattr(module, name, poisonous(getattr(module, name)))
        yield
