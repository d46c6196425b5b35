"""What a step packs for the GPU: which room it takes, and that what is large is not copied on the way."""

from __future__ import annotations

import numpy as np
import pytest

from ramet.kernels.triton.draws import DrawRoom
from ramet.runtime.batch import Masks
from ramet.runtime.models.decoder import Decoder
from ramet.runtime.models.hub import PRESETS
from ramet.runtime.steps import EDITS, MOST, TritonSteps

from ..kernels.ragged import Part, batch, draws
from . import hosted


@pytest.fixture(scope="module")
def steps() -> TritonSteps:
    made: Decoder = hosted.decoder(PRESETS["tiny"])
    return TritonSteps(made, made.angles(256), 1000)


def test_a_room_is_as_large_as_what_changes(steps: TritonSteps) -> None:
    """Penalties for what was generated do not look at the prompt, and a token that came often is one edit."""
    at = np.arange(MOST, dtype=np.int32)
    drawn = draws(at, frequency=0.5)
    long = np.arange(1000, dtype=np.int32) % 50
    history = tuple((r, long, 200) for r in range(MOST))
    packed = steps.pack_draws(drawn, at, Masks(history), MOST)
    assert packed is not None
    assert packed.facts == DrawRoom(MOST, 1 << 14, 0, False)
    everything = tuple((r, np.arange(EDITS[-1] // MOST + 1, dtype=np.int32), 0) for r in range(MOST))
    assert steps.pack_draws(drawn.changed(repetition=2.0), at, Masks(everything), MOST) is None


def test_slots_and_bitmasks_are_copied_once(steps: TritonSteps) -> None:
    """That is, to the device: the packed parts are the batch's own."""
    made = batch([Part(np.zeros(200, np.int32), np.arange(200, dtype=np.int32), 199, 200)])
    plan = steps.pack(made, 1)
    assert plan is not None and plan.parts[-1] is made.kv_indices
    bits = np.zeros(-(-PRESETS["tiny"].vocab // 32), np.uint32)
    packed = steps.pack_draws(draws([0, 1]), np.arange(2, dtype=np.int32), Masks(allowed=((1, bits),)), 2)
    assert packed is not None and packed.facts == DrawRoom(2, 0, 1, False)
    assert len(packed.parts) == 2 and np.shares_memory(packed.parts[1], bits)
