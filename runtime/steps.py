"""What a step needs of a device's kernels beyond `Ops`: batches and draws packed for one copy each.

In: batches, draws, masks on the host. Out: packed words, and views of those words once they are on the device.
`TritonSteps` is the GPU's; tests have one in plain torch.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch

from ramet.kernels.ops import Angles, Plan
from ramet.kernels.triton import plan as plans
from ramet.kernels.triton.draws import DrawRoom, DrawView, asked, view_draws
from ramet.runtime.batch import I32, Batch, Draws, Masks
from ramet.runtime.models.decoder import Decoder

if TYPE_CHECKING:
    from ramet.kernels.triton.sample import DrawScratch

MOST = 256  # tokens, and draws, of the largest bucket; a larger step hides its launches behind its work
EDITS = (0, 1 << 10, 1 << 12, 1 << 14, 1 << 16)  # changed logits of a graph's draws, at most


@dataclass(frozen=True, slots=True)
class Packed:
    """`parts` to copy to the device, one behind the other; `facts`: what of them decides which kernels are launched (a
    part of a graph's key), `detail`: the packer's own."""

    parts: tuple[I32, ...]
    facts: Hashable
    detail: Any


class Steps(Protocol):
    """Packing for one model on one device. With a bucket, sizes and offsets are those of every batch of the bucket, and
    padding names the dump slot; without one they are the batch's own."""

    def plan_words(self, bucket: int) -> int:
        """Most words that a plan of this bucket has."""

    def draw_words(self, bucket: int) -> int:
        """Most words that draws of this bucket have."""

    def scratch_bytes(self, tokens: int, draws: int) -> int:
        """Bytes that views of buckets up to these allocate for their kernels."""

    def pack(self, batch: Batch, bucket: int | None) -> Packed | None:
        """A batch's plan; None when it does not fit the bucket."""

    def view(self, words: torch.Tensor, packed: Packed) -> Plan:
        """The plan in `words` `[>= plan_words] int32` on the device, with scratch memory of its own. Of `packed` it
        uses what all batches of a bucket with equal facts have in common."""

    def gather(self, plan: Any, last: torch.Tensor) -> torch.Tensor:
        """The plan's token ids `[T'] int64`, those that `last` (the token table) supplies filled in."""

    def pack_draws(self, draws: Draws, at: I32, masks: Masks, bucket: int | None) -> Packed | None:
        """Draws without logprobs; `at` as in `Ops.sample`. None when they do not fit the bucket."""

    def view_draws(self, words: torch.Tensor, packed: Packed) -> Any:
        """As `view`."""

    def draw(self, logits: torch.Tensor, view: Any) -> torch.Tensor:
        """Tokens `[R'] int64` drawn from `logits` `[U, V] float32`; those of padded draws mean nothing."""

    def scatter(self, tokens: torch.Tensor, into: torch.Tensor, last: torch.Tensor) -> None:
        """Write tokens `[R'] int64` to rows `into` `[R'] int32` of the token table; a draw that failed (-1) as 0."""


class TritonSteps:
    """The GPU's `Steps`, for `TritonOps`."""

    def __init__(self, decoder: Decoder, angles: Angles, capacity: int) -> None:
        self._layout, self._angles, self._capacity, self._vocab = decoder.layout, angles, capacity, decoder.spec.vocab
        self._deterministic = bool(getattr(decoder.ops, "deterministic", False))
        self._grouping = bool(getattr(decoder.ops, "grouping", True))

    def scratch_bytes(self, tokens: int, draws: int) -> int:
        """See `Steps`."""
        from ramet.kernels.triton.sample import scratch_bytes

        return self._partial_bytes(tokens) + scratch_bytes(DrawRoom(draws, EDITS[-1], draws), self._vocab)

    def _partial_bytes(self, tokens: int) -> int:
        return plans.partial_bytes(self._room(tokens), self._layout)

    # -- plans

    def _room(self, bucket: int) -> plans.Room:
        return plans.bucket_room(
            bucket,
            context=len(self._angles.cos),
            windows=len(self._layout.windows),
            layout=self._layout,
            deterministic=self._deterministic,
        )

    def plan_words(self, bucket: int) -> int:
        """See `Steps`."""
        return plans.word_count(self._room(bucket), self._layout)

    def pack(self, batch: Batch, bucket: int | None) -> Packed | None:
        """See `Steps`."""
        room = None if bucket is None else self._room(bucket)
        packed = plans.pack(
            batch,
            self._layout,
            self._capacity,
            room=room,
            deterministic=self._deterministic,
            grouping=self._grouping,
        )
        return None if packed is None else Packed(packed.parts, (packed.launches, packed.wide_m), packed)

    def view(self, words: torch.Tensor, packed: Packed) -> plans.TritonPlan:
        """See `Steps`."""
        made: plans.Packed = packed.detail
        partials = plans.buffers(made.room, self._layout, words.device)
        options = {"launches": made.launches, "wide_m": made.wide_m}
        return plans.view(words, made.room, self._layout, self._angles, partials, **options)  # type: ignore[arg-type]

    def gather(self, plan: plans.TritonPlan, last: torch.Tensor) -> torch.Tensor:
        """See `Steps`."""
        from ramet.kernels.triton.table import gather

        return gather(plan.ids, plan.feed, last)

    # -- draws

    def draw_words(self, bucket: int) -> int:
        """See `Steps`."""
        return DrawRoom(bucket, EDITS[-1], bucket).words(self._vocab)

    def pack_draws(self, draws: Draws, at: I32, masks: Masks, bucket: int | None) -> Packed | None:
        """See `Steps`. Room for edits and masks grows in steps: few graphs, and no large copy for a small need."""
        found = asked(draws, at, masks, self._vocab)
        room = found.room if bucket is None else _draw_room(found.room, bucket)
        return None if room is None else Packed(found.packed(room).parts, room, room)

    def view_draws(self, words: torch.Tensor, packed: Packed) -> tuple[DrawView, DrawScratch]:
        """See `Steps`."""
        from ramet.kernels.triton.sample import draw_scratch

        room: DrawRoom = packed.detail
        view = view_draws(words[: room.words(self._vocab)], room)
        return view, draw_scratch(room, self._vocab, words.device)

    def draw(self, logits: torch.Tensor, view: tuple[DrawView, DrawScratch]) -> torch.Tensor:
        """See `Steps`."""
        from ramet.kernels.triton.sample import draw

        return draw(logits, *view)

    def scatter(self, tokens: torch.Tensor, into: torch.Tensor, last: torch.Tensor) -> None:
        """See `Steps`."""
        from ramet.kernels.triton.table import scatter

        scatter(tokens, into, last)


def _draw_room(need: DrawRoom, bucket: int) -> DrawRoom | None:
    """The room of this bucket that holds what is needed; None when that has too many edits."""
    edits = next((room for room in EDITS if need.edits <= room), None)
    if edits is None:
        return None
    masks = min(bucket, 1 << (need.masks - 1).bit_length()) if need.masks else 0
    return DrawRoom(bucket, edits, masks, need.cut)
