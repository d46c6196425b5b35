"""One forward pass as plain arrays, and what comes back from it.

In: the scheduler fills a `Batch` (host arrays, never mutated after launch). Out: a `Runner` turns it into a `Flight`
and later into `Samples`. The ragged interface is the same for prefill, extend, decode and token tries, on every device.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]
F32 = NDArray[np.float32]
U32 = NDArray[np.uint32]


SCORED = 256  # tokens that Scores score and guesses check in one step: a row of logits each, 0.5 MB with 128k tokens

# How a token is drawn: the record that the native kernels read (`RametDraw`).
RECORD = np.dtype(
    [
        ("seeds", np.uint64),
        ("temperature", np.float32),
        ("top_p", np.float32),
        ("min_p", np.float32),
        ("top_k", np.int32),
        ("frequency", np.float32),
        ("presence", np.float32),
        ("repetition", np.float32),
        ("logprobs", np.int32),
    ]
)
WORDS = RECORD.itemsize // 8


@dataclass(frozen=True, slots=True)
class Draws:
    """The R tokens to sample in this step; index r runs over all fields. `words` `[R, 5] uint64` are R of `RECORD`,
    whose columns have properties of their own (numpy copies words ten times as fast as it copies records).

    `rows[r]` is the index into the batch's tokens whose logits are used (several draws may share one: the children of a
    fork); `into[r]` the row of the token table that receives the token (where several draws have the same row it
    receives any of them, and no later batch is fed it); `positions[r]` the position that the token will
    have, which with `seeds[r]` fixes its noise. `logprobs[r]` is -1 (none), 0 (the token's own) or k (and the k best).
    `bias` holds sparse additions (r, token ids, values; -inf forbids), min_tokens' ban of stop tokens included.
    """

    rows: I32
    into: I32
    positions: I64
    words: U64
    bias: tuple[tuple[int, I32, F32], ...] = ()

    @classmethod
    def of(
        cls, rows: I32, into: I32, positions: I64, bias: tuple[tuple[int, I32, F32], ...] = (), **columns: Any
    ) -> Draws:
        """Draws from columns, each `[R]` or a scalar for all; greedy and without any option where none is given."""
        records = np.zeros(len(rows), RECORD)
        for name, value in ({"top_p": 1.0, "repetition": 1.0, "logprobs": -1} | columns).items():
            records[name] = value
        return cls(rows, into, positions, records.view(np.uint64).reshape(-1, WORDS), bias)

    def changed(self, **columns: Any) -> Draws:
        """The same draws with other columns, each `[R]` or a scalar for all."""
        words = self.words.copy()
        for name, value in columns.items():
            words.view(RECORD)[:, 0][name] = value
        return replace(self, words=words)

    def __len__(self) -> int:
        return len(self.rows)

    def _column(self, name: str) -> NDArray[Any]:
        return self.words.view(RECORD)[:, 0][name]

    @property
    def seeds(self) -> U64:
        """`[R] uint64`."""
        return self._column("seeds")

    @property
    def temperature(self) -> F32:
        """`[R] float32`; 0 is greedy."""
        return self._column("temperature")

    @property
    def top_p(self) -> F32:
        """`[R] float32`; 1 is off."""
        return self._column("top_p")

    @property
    def min_p(self) -> F32:
        """`[R] float32`; 0 is off."""
        return self._column("min_p")

    @property
    def top_k(self) -> I32:
        """`[R] int32`; 0 is off."""
        return self._column("top_k")

    @property
    def frequency(self) -> F32:
        """`[R] float32`; 0 is off."""
        return self._column("frequency")

    @property
    def presence(self) -> F32:
        """`[R] float32`; 0 is off."""
        return self._column("presence")

    @property
    def repetition(self) -> F32:
        """`[R] float32`; 1 is off."""
        return self._column("repetition")

    @property
    def logprobs(self) -> I32:
        """`[R] int32`."""
        return self._column("logprobs")


def _empty_i32() -> I32:
    return np.zeros(0, np.int32)


def _empty_f32() -> F32:
    return np.zeros(0, np.float32)


def _no_ids() -> I32:
    return np.zeros((0, 0), np.int32)


def _no_logprobs() -> F32:
    return np.zeros((0, 0), np.float32)


@dataclass(frozen=True, slots=True)
class Targets:
    """P given continuations to score: the logprob of `tokens[p]` after the batch's token `rows[p]`, and of the `top[p]`
    most likely tokens there. `top` is `[P]`, or `[0]` where no target asks for any."""

    rows: I32
    tokens: I32
    top: I32 = field(default_factory=_empty_i32)

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, slots=True)
class Batch:
    """T new tokens of S segments. A segment is a run of consecutive new tokens of one sequence (or of one path of a
    token trie) together with all slots that its last token may see.

    tokens, positions, slots `[T] int32`: id (-1 where `feed` supplies it), position, and the KV slot to write.
    qo_indptr `[S+1]`: segment s owns new tokens qo_indptr[s]:qo_indptr[s+1]. kv_indptr `[S+1]`, kv_indices: its
    slots in order of position, the new ones included; the new tokens are the last of them (causal: new token i of n
    sees kv_length - n + i + 1 slots). A segment may list slots that another segment of the same batch writes: in
    each layer all K and V are stored before any attention runs.
    feed, feed_rows `[F] int32`: tokens[feed[i]] is the token last sampled into row feed_rows[i] of the token table.
    """

    step: int
    tokens: I32
    positions: I32
    slots: I32
    qo_indptr: I32
    kv_indptr: I32
    kv_indices: I32
    feed: I32
    feed_rows: I32
    draws: Draws
    targets: Targets
    owner: Any = None  # the scheduler's own notes about this batch; opaque to runners

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def segments(self) -> int:
        """S, the number of segments."""
        return len(self.qo_indptr) - 1


@dataclass(frozen=True, slots=True)
class Masks:
    """What sampling needs that is known only after the previous step was collected; r indexes `Draws`.

    `history`: (r, all token ids of the sequence, how many of its last ones were generated by this op) for penalties.
    `allowed`: (r, packed bitmask `[ceil(V/32)] uint32`, bit set = allowed) for constraints.
    """

    history: tuple[tuple[int, I32, int], ...] = ()
    allowed: tuple[tuple[int, U32], ...] = ()


@dataclass(frozen=True, slots=True)
class Samples:
    """What a flight brought back: tokens `[R] int32`, their logprobs `[R] float32` (nan where not asked for), the most
    likely alternatives `[R, K]` (K the largest asked for; id -1 beyond a row's own k), target logprobs `[P] float32`
    and likewise the targets' alternatives `[P, K']`. Logprobs are of the model's distribution: temperature 1, before
    penalties, bias and truncation."""

    tokens: I32 = field(default_factory=_empty_i32)
    logprobs: F32 = field(default_factory=_empty_f32)
    top_ids: I32 = field(default_factory=_no_ids)
    top_logprobs: F32 = field(default_factory=_no_logprobs)
    targets: F32 = field(default_factory=_empty_f32)
    target_ids: I32 = field(default_factory=_no_ids)
    target_logprobs: F32 = field(default_factory=_no_logprobs)


class Flight(Protocol):
    """A batch in the air; what else it holds is its runner's business."""

    batch: Batch


class Runner(Protocol):
    """Executes batches on one device, in the order in which they are launched.

    `capacity` is the number of KV slots, `rows` the number of rows of the token table, `context` the longest sequence.
    """

    capacity: int
    rows: int
    context: int
    vocab: int

    def forward(self, batch: Batch) -> Flight:
        """Launch the forward pass; may return before the device is done."""

    def sample(self, flight: Flight, masks: Masks) -> None:
        """Launch sampling and the write into the token table."""

    def read(self, flight: Flight) -> Samples:
        """Wait for the flight and return its results; called once per flight."""


_NONE: I32 = np.zeros(0, np.int32)


def wanted(batch: Batch) -> tuple[I32, I32, I32]:
    """The tokens of a batch whose logits are drawn from or scored, each once `[U]`; which of them each draw `[R]` and
    each target `[P]` uses."""
    draws = batch.draws.rows
    if not len(batch.targets.rows) and (len(draws) < 2 or (draws[1:] > draws[:-1]).all()):  # usually: each once
        return draws, np.arange(len(draws), dtype=np.int32), _NONE
    rows, where = np.unique(np.concatenate((draws, batch.targets.rows)), return_inverse=True)
    index: I32 = where.astype(np.int32)
    return rows, index[: len(batch.draws)], index[len(batch.draws) :]
