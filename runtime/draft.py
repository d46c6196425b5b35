"""A batch in the making: the scheduler adds segments, draws and targets; `launch` freezes them into a `Batch`.

In: runs of tokens with their slots. Out: a `Batch` and `Notes`, the scheduler's own record of whose results are where.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ramet.runtime.batch import F32, I32, Batch, Draws, Targets
from ramet.runtime.radix import Node
from ramet.runtime.sequence import Choosing, Generating, Sequence

EMPTY: I32 = np.zeros(0, np.int32)
_SEED_BITS = (1 << 64) - 1


@dataclass(slots=True)
class Draw:
    """One token that will be sampled: for whom, in which turn, at which position."""

    seq: Sequence
    turn: int
    task: Generating
    position: int


@dataclass(slots=True)
class Score:
    """One Choose whose edges are scored: targets [first, first + edges) of the trie, then as many unconditional
    ones, if any."""

    seq: Sequence
    turn: int
    task: Choosing
    first: int


@dataclass(slots=True)
class Notes:
    """Whose results a flight carries (`Batch.owner`)."""

    draws: list[Draw] = field(default_factory=list)
    scores: list[Score] = field(default_factory=list)
    members: list[Sequence] = field(default_factory=list)


class Draft:
    """The step being planned. `left` is what remains of its token budget."""

    def __init__(self, step: int, budget: int) -> None:
        self.step = step
        self.left = budget
        self.notes = Notes()
        self.members: set[Sequence] = set()  # who takes part
        self.ends: dict[Node, int] = {}  # a node at whose end a row of this batch stands → that row
        self.frontier: set[tuple[Node, int]] = set()  # (node, next token) that a member is going to compute
        self.count = 0
        self._tokens: list[I32] = []
        self._positions: list[I32] = []
        self._slots: list[I32] = []
        self._kv: list[I32] = []
        self._qo = [0]
        self._kv_indptr = [0]
        self._feed: list[int] = []
        self._feed_rows: list[int] = []
        self._rows: list[int] = []
        self._into: list[int] = []
        self._bias: list[tuple[int, I32, F32]] = []
        self._target_rows: list[int] = []
        self._target_tokens: list[int] = []

    def join(self, seq: Sequence) -> None:
        """The sequence takes part in this step."""
        if seq not in self.members:
            self.members.add(seq)
            self.notes.members.append(seq)

    def segment(self, tokens: I32, start: int, slots: I32, kv: I32) -> int:
        """Add a run of tokens at positions start...; `kv` all slots up to the last one. The index of its first
        token."""
        first = self.count
        self._tokens.append(tokens)
        self._positions.append(np.arange(start, start + len(tokens), dtype=np.int32))
        self._slots.append(slots)
        self._kv.append(kv)
        self.count += len(tokens)
        self.left -= len(tokens)
        self._qo.append(self.count)
        self._kv_indptr.append(self._kv_indptr[-1] + len(kv))
        return first

    def feed(self, index: int, row: int) -> None:
        """Token `index` of the batch is the one that was last sampled into `row`."""
        self._feed.append(index)
        self._feed_rows.append(row)

    def draw(self, seq: Sequence, task: Generating, index: int, banned: I32) -> None:
        """Sample the sequence's next token from the logits of token `index`; `banned` ids are excluded."""
        assert seq.row is not None, "only a seated sequence draws"
        r = len(self._rows)
        self._rows.append(index)
        self._into.append(seq.row)
        bias = task.op.sampling.logit_bias
        if bias:
            self._bias.append((r, np.fromiter(bias, np.int32), np.fromiter(bias.values(), np.float32)))
        if len(banned):
            self._bias.append((r, banned, np.full(len(banned), -np.inf, np.float32)))
        self.notes.draws.append(Draw(seq, seq.turn, task, seq.length))

    def targets(self, rows: list[int], tokens: list[int]) -> int:
        """Score continuations; the index of the first."""
        first = len(self._target_rows)
        self._target_rows += rows
        self._target_tokens += tokens
        return first

    def launch(self) -> Batch | None:
        """The frozen batch, or None when there is nothing to do."""
        if not self.count:
            assert not self._rows and not self._target_rows, "results without a computation"
            return None
        return Batch(
            step=self.step,
            tokens=np.concatenate(self._tokens),
            positions=np.concatenate(self._positions),
            slots=np.concatenate(self._slots),
            qo_indptr=np.array(self._qo, np.int32),
            kv_indptr=np.array(self._kv_indptr, np.int32),
            kv_indices=np.concatenate(self._kv),
            feed=np.array(self._feed, np.int32),
            feed_rows=np.array(self._feed_rows, np.int32),
            draws=self._draws(),
            targets=Targets(np.array(self._target_rows, np.int32), np.array(self._target_tokens, np.int32)),
            owner=self.notes,
        )

    def _draws(self) -> Draws:
        draws = self.notes.draws
        samplings = [draw.task.op.sampling for draw in draws]
        return Draws(
            rows=np.array(self._rows, np.int32),
            into=np.array(self._into, np.int32),
            positions=np.array([draw.position for draw in draws], np.int64),
            seeds=np.array([draw.task.op.seed & _SEED_BITS for draw in draws], np.uint64),
            temperature=np.array([s.temperature for s in samplings], np.float32),
            top_p=np.array([s.top_p for s in samplings], np.float32),
            top_k=np.array([s.top_k for s in samplings], np.int32),
            min_p=np.array([s.min_p for s in samplings], np.float32),
            frequency=np.array([s.frequency_penalty for s in samplings], np.float32),
            presence=np.array([s.presence_penalty for s in samplings], np.float32),
            repetition=np.array([s.repetition_penalty for s in samplings], np.float32),
            logprobs=np.array([s.logprobs for s in samplings], np.int32),
            bias=tuple(self._bias),
        )

    def published(self, node: Node, row: int, next_token: int | None) -> None:
        """A member's computed tokens now end at `node`, its last one is token `row` of this batch; it goes on with
        `next_token` (None: it does not know yet)."""
        self.ends[node] = row
        if next_token is not None:
            self.frontier.add((node, next_token))
