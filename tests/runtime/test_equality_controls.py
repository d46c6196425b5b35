"""The equality ladder can fail: under faults that make a result depend on what happens around its request, the very
same checks see it.

In: the checks of test_equality. Each fault is one that batching, caching or chunking brings in elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from ramet.runtime.models.decoder import Decoder
from ramet.runtime.models.load import random_weights
from ramet.runtime.runner import TorchRunner

from . import test_equality as ladder

Bits = list[tuple[object, ...]]
Check = Callable[[Decoder, Bits], None]
FORWARD, SAMPLE = TorchRunner.forward, TorchRunner.sample


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    torch.set_num_threads(1)
    return Decoder(ladder.SPEC, random_weights(ladder.SPEC, torch.float32, seed=3), "cpu", torch.float32)


def _alone(decoder: Decoder) -> Bits:
    """The reference, under whatever fault there is."""
    bits = []
    for request in ladder.REQUESTS:
        drive = ladder.drive(decoder)
        name = drive.completion(*request)
        drive.run()
        bits.append(drive[name, "0.1"].bits)
    return bits


# -- the faults


def by_company(self: TorchRunner, batch: Any) -> Any:
    """A kernel that sums in another order for each number of rows."""
    flight = FORWARD(self, batch)
    if flight.logits is not None:
        with torch.inference_mode():
            flight.logits = flight.logits * (1 + 1e-4 * (len(batch.draws.rows) - 1))
    return flight


def by_tokens(self: TorchRunner, batch: Any) -> Any:
    """A kernel that is another one for long batches."""
    flight = FORWARD(self, batch)
    if flight.logits is not None and len(batch) > 1:
        with torch.inference_mode():
            flight.logits = flight.logits * (1 + 1e-5 * len(batch))
    return flight


def rounded_cache(self: TorchRunner, batch: Any) -> Any:
    """A cache of lower precision than what a batch computes with."""
    with torch.inference_mode():
        self._cache.mul_(64).round_().div_(64)
    return FORWARD(self, batch)


def drawn_at(self: TorchRunner, flight: Any, masks: Any, positions: Any) -> None:
    """Draw with the noise of other positions."""
    batch = flight.batch
    flight.batch = replace(batch, draws=replace(batch.draws, positions=positions.astype(np.int64)))
    SAMPLE(self, flight, masks)
    flight.batch = batch


def by_step(self: TorchRunner, flight: Any, masks: Any) -> None:
    """Noise of the engine's own generator: of the step and not of the position."""
    self.steps = getattr(self, "steps", 0) + 1  # type: ignore[attr-defined]
    drawn_at(self, flight, masks, np.full_like(flight.batch.draws.positions, self.steps))  # type: ignore[attr-defined]


def by_row(self: TorchRunner, flight: Any, masks: Any) -> None:
    """Noise of the row that a sequence happens to have."""
    drawn_at(self, flight, masks, flight.batch.draws.positions + 1000 * flight.batch.draws.into)


FAULTS: dict[str, tuple[Any, str, Any]] = {
    "company": (TorchRunner, "forward", by_company),
    "tokens of a batch": (TorchRunner, "forward", by_tokens),
    "a rounded cache": (TorchRunner, "forward", rounded_cache),
    "noise by step": (TorchRunner, "sample", by_step),
    "noise by row": (TorchRunner, "sample", by_row),
}


def choice(decoder: Decoder, alone: Bits) -> None:
    ladder.test_a_choice_scores_the_same_bits_in_any_company(decoder)


CHECKS: dict[str, Check] = {
    "batched": ladder.test_batched_with_others,
    "staggered": ladder.test_batched_in_another_order_and_staggered,
    "warm": ladder.test_warm,
    "cut": lambda decoder, alone: ladder.test_warm_cache_cut_anywhere(decoder, alone, 17),
    "chunked": lambda decoder, alone: ladder.test_chunked(decoder, alone, 7),
    "not overlapped": ladder.test_without_overlap,
    "retracted": lambda decoder, alone: ladder.test_retracted_at_any_step(decoder, alone, 6),
    "retracted again and again": ladder.test_retracted_at_every_step_with_eviction,
    "a small pool": ladder.test_in_a_pool_that_is_too_small_for_all,
    "fork siblings": ladder.test_fork_siblings,
    "policies": lambda decoder, alone: ladder.test_under_each_policy(decoder, alone, "age", 170),
    "choices": choice,
}
# Faults that each check has to see; the first of them every day.
SEEN: dict[str, tuple[str, ...]] = {
    "batched": ("company", "noise by row"),
    "staggered": ("noise by step", "company"),
    "warm": ("a rounded cache", "tokens of a batch"),
    "cut": ("tokens of a batch", "a rounded cache"),
    "chunked": ("a rounded cache", "tokens of a batch", "noise by step"),
    "not overlapped": ("company", "noise by row"),
    "retracted": ("noise by row",),
    "retracted again and again": ("a rounded cache",),
    "a small pool": ("noise by row", "noise by step"),
    "fork siblings": ("company", "noise by row"),
    "policies": ("company", "noise by step"),
    "choices": ("tokens of a batch",),
}
PAIRS = [
    pytest.param(check, fault, marks=() if n == 0 else pytest.mark.nightly)
    for check, faults in SEEN.items()
    for n, fault in enumerate(faults)
]


def test_every_check_and_every_fault_has_its_turn() -> None:
    assert set(SEEN) == set(CHECKS) and {faults[0] for faults in SEEN.values()} == set(FAULTS)


@pytest.fixture(scope="module")
def references() -> dict[str, Bits]:
    """Of each fault, once it was needed."""
    return {}


@pytest.mark.parametrize(("check", "fault"), PAIRS)
def test_a_fault_is_seen(
    decoder: Decoder, references: dict[str, Bits], monkeypatch: pytest.MonkeyPatch, check: str, fault: str
) -> None:
    """Without one nothing is: that is test_equality."""
    monkeypatch.setattr(*FAULTS[fault])
    if fault not in references:
        references[fault] = _alone(decoder)
    alone = references[fault]
    assert len(set(alone)) == len(alone)
    with pytest.raises(AssertionError):
        CHECKS[check](decoder, alone)
