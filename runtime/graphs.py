"""Steps as captured graphs, on buffers that never move.

In: a batch, its draws, its masks. Out: the same tensors that an eager step would compute, by replaying what was
captured for the next larger bucket. Three kinds of graph, since their sizes are independent: `forward` (by tokens),
`head` (by rows of logits), `sample` (by draws); sampling is a replay of its own because masks are known only after the
previous step was collected.
"""

from __future__ import annotations

import traceback
from bisect import bisect_left
from collections.abc import Callable, Hashable, Sequence

import numpy as np
import torch

from ramet.runtime.batch import I32, Batch, Draws, Masks
from ramet.runtime.device import Device, Graph, out_of_memory
from ramet.runtime.models.decoder import Decoder
from ramet.runtime.steps import MOST, Packed, Steps

FORWARD_BYTES = 8 << 20  # what the driver keeps for one forward graph of a deep model; an estimate
SMALL_BYTES = 1 << 20  # and for one of a few kernels
_ALIGN = 32  # words: 128 bytes, so that what is packed begins as aligned as the buffer does
Key = tuple[Hashable, ...]


def buckets(most: int) -> tuple[int, ...]:
    """Sizes of graphs: 1, 2, 4, 8, then steps of 8 to 64, of 16 to 256; up to the first that holds `most`."""
    sizes = (1, 2, 4, 8, *range(16, 65, 8), *range(80, MOST + 1, 16))
    return sizes[: bisect_left(sizes, most) + 1]


def bucket(count: int, sizes: Sequence[int]) -> int | None:
    """The smallest of the ascending `sizes` that holds `count`; None when none does."""
    at = bisect_left(sizes, count)
    return sizes[at] if at < len(sizes) else None


def filled(head: I32, width: int, fill: int) -> I32:
    """`head`, filled up to `width` with `fill`."""
    made: I32 = np.full(width, fill, np.int32)
    made[: len(head)] = head
    return made


def aligned(count: int) -> int:
    """`count` words, rounded up so that what follows is aligned."""
    return -(-count // _ALIGN) * _ALIGN


class Graphs:
    """All graphs of a runner. Its callers hold `device.launching()` and inference mode.

    `cache` and `last` are the runner's KV pool and token table `[rows + 1] int64`, whose last row takes what padded
    draws write. A key (kind, bucket, what the plan has to launch) runs eagerly, on the same buffers, when it is met for
    the first time after `warm`, and is captured when it is met again; where memory for that is missing it stays eager.

    Buffers are written by the compute stream alone, from a fresh staged copy, so that no replay in flight is
    overwritten; words behind those that a batch uses keep what an older batch left there and are not read.
    """

    def __init__(
        self, device: Device, decoder: Decoder, steps: Steps, cache: torch.Tensor, last: torch.Tensor, rows: int
    ) -> None:
        self._device, self._decoder, self._steps, self._cache, self._last = device, decoder, steps, cache, last
        self.tokens, self.draws = buckets(MOST), buckets(min(rows, MOST))
        self._sizes = (aligned(self.tokens[-1]), aligned(self.draws[-1]))
        spec, most = decoder.spec, self.draws[-1]

        def zeros(*shape: int, dtype: torch.dtype) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=device.place)

        self.hidden = zeros(self.tokens[-1], spec.hidden, dtype=torch.float32)
        self.logits = zeros(most, spec.vocab, dtype=torch.float32)
        self._drawn = zeros(most, dtype=torch.int64)
        self._plan = zeros(self._sizes[0] + max(map(steps.plan_words, self.tokens)), dtype=torch.int32)
        self._draw = zeros(self._sizes[1] + max(map(steps.draw_words, self.draws)), dtype=torch.int32)
        self._graphs: dict[Key, Graph | None] = {}  # None: could not be captured
        self._met: set[Key] = set()
        self._warming = False

    @staticmethod
    def bytes_for(decoder: Decoder, steps: Steps, rows: int) -> int:
        """Bytes of the buffers for up to `rows` draws, and of the scratch memory in the graphs' pool."""
        draws, spec = buckets(min(rows, MOST)), decoder.spec
        words = max(map(steps.plan_words, buckets(MOST))) + max(map(steps.draw_words, draws)) + 2 * aligned(MOST)
        return 4 * (words + MOST * spec.hidden + draws[-1] * (spec.vocab + 2)) + steps.scratch_bytes(MOST, draws[-1])

    def captured(self) -> tuple[Key, ...]:
        """Keys of the graphs that exist."""
        return tuple(key for key, graph in self._graphs.items() if graph is not None)

    def warm(self, batches: Sequence[Batch]) -> None:
        """Capture what these batches need, with their draws and with greedy ones; from large to small, so that the
        small ones live in the large ones' memory."""
        self._warming = True
        try:
            for batch in sorted(batches, key=len, reverse=True):
                rows = batch.draws.rows
                if self.forward(batch, rows) is not None and len(rows) <= self.draws[-1]:
                    self.head(self.hidden, len(rows))
                    at = np.arange(len(rows), dtype=np.int32)
                    self.sample(batch.draws, at, Masks())
                    self.sample(batch.draws.changed(temperature=0), at, Masks())
        finally:
            self._warming = False

    def forward(self, batch: Batch, rows: I32) -> torch.Tensor | None:
        """Hidden states `[bucket, E] float32` of a batch, and `rows` `[U]` staged for `head`; None when the batch does
        not fit a bucket."""
        size = bucket(len(batch), self.tokens)
        packed = None if size is None or len(rows) > self.tokens[-1] else self._steps.pack(batch, size)
        if size is None or packed is None:
            return None
        self._fill(self._plan, filled(rows, self._sizes[0], 0), packed)
        self._run(("forward", size, packed.facts), lambda: self._forward(size, packed))
        return self.hidden[:size]

    def _forward(self, size: int, packed: Packed) -> None:
        plan = self._steps.view(self._plan[self._sizes[0] :], packed)
        tokens = self._steps.gather(plan, self._last)
        self.hidden[:size].copy_(self._decoder.forward(tokens, plan, self._cache))

    def head(self, hidden: torch.Tensor, count: int) -> torch.Tensor:
        """Logits `[count, V] float32` of the staged rows of `hidden`, which is `forward`'s; valid until the next
        batch's."""
        size = bucket(count, self.draws)
        assert hidden.data_ptr() == self.hidden.data_ptr(), "the head reads what forward left"
        assert size is not None, "the caller asks for no more rows than there are draws"
        self._run(("head", size), lambda: self._head(size))
        return self.logits[:count]

    def staged_rows(self, count: int) -> torch.Tensor:
        """`rows` of the last `forward`, `[count] int32` on the device, for a head that is larger than any bucket."""
        return self._plan[:count]

    def _head(self, size: int) -> None:
        chosen = self.hidden.index_select(0, self._plan[:size])
        self._decoder.logits(chosen, self.logits[:size])

    def sample(self, draws: Draws, at: I32, masks: Masks) -> torch.Tensor | None:
        """Tokens `[R] int64` drawn from `logits`, whose row `at[r]` draw r uses, and written to the token table; None
        when the draws do not fit. A fresh tensor."""
        size = bucket(len(draws), self.draws)
        packed = None if size is None else self._steps.pack_draws(draws, at, masks, size)
        if size is None or packed is None:
            return None
        self._fill(self._draw, filled(draws.into, self._sizes[1], len(self._last) - 1), packed)
        self._run(("sample", size, packed.facts), lambda: self._sample(size, packed))
        return self._drawn[: len(draws)].clone()

    def _sample(self, size: int, packed: Packed) -> None:
        view = self._steps.view_draws(self._draw[self._sizes[1] :], packed)
        tokens = self._steps.draw(self.logits, view)
        self._steps.scatter(tokens, self._draw[:size], self._last)
        self._drawn[:size].copy_(tokens)

    def _fill(self, buffer: torch.Tensor, head: I32, packed: Packed) -> None:
        staged = self._device.stage(head, *packed.parts)
        buffer[: len(staged)].copy_(staged)

    def _run(self, key: Key, run: Callable[[], None]) -> None:
        """Replay, or capture, or just run."""
        graph = self._graphs.get(key)
        if graph is not None:
            graph.replay()
        elif key in self._graphs or not (self._warming or key in self._met):
            self._met.add(key)
            run()
        else:
            self._capture(key, run)

    def _capture(self, key: Key, run: Callable[[], None]) -> None:
        """Capturing runs it once."""
        self._graphs[key] = None  # whatever goes wrong: the next time it just runs
        try:
            self._graphs[key] = self._device.capture(run)
            return
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            traceback.clear_frames(error.__traceback__)  # their tensors would live as long as the error
        self._device.trim()
        run()
