"""A batch in the making: the scheduler adds segments, draws and targets; `launch` freezes them into a `Batch`.

In: runs of tokens with their slots, or many single tokens at once. Out: a `Batch` and `Notes`, the scheduler's own
record of whose results are where.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ramet.runtime.batch import I32, I64, SCORED, U32, Batch, Masks, Targets
from ramet.runtime.choices import Trie
from ramet.runtime.jump import allow
from ramet.runtime.parameters import Bias, Parameters
from ramet.runtime.radix import Node
from ramet.runtime.sequence import Choosing, Generating, Scoring, Sequence

EMPTY: I32 = np.zeros(0, np.int32)
_NO_MASKS = Masks()
_GRAIN = 1 << 14  # entries


@dataclass(slots=True)
class Trial:
    """One Choose whose edges are scored: targets [first, first + edges) of the trie, then as many unconditional
    ones, if any."""

    seq: Sequence
    turn: int
    task: Choosing
    first: int


@dataclass(slots=True)
class Span:
    """A part of a Score: targets [first, first + count) are the sequence's tokens from position `start` on. `last`: the
    Score ends with it."""

    seq: Sequence
    turn: int
    task: Scoring
    first: int
    start: int
    count: int
    last: bool


@dataclass(slots=True)
class Notes:
    """Whose results a flight carries (`Batch.owner`). Draw r is for `drawn[r]`, in its turn `turns[r]`, by `tasks[r]`;
    `penalised` lists the draws that look at their history, `constrained` those that a grammar holds to something:
    (r, how many guessed tokens stand before it). `begun` are the sequences whose call has its prompt computed now.
    `eager`: what this flight brings may change what is to be computed next, so it is to be read before the next plan.
    """

    drawn: list[Sequence] = field(default_factory=list)
    turns: list[int] = field(default_factory=list)
    tasks: list[Generating] = field(default_factory=list)
    penalised: list[int] = field(default_factory=list)
    constrained: list[tuple[int, int]] = field(default_factory=list)
    eager: bool = False
    trials: list[Trial] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    begun: list[Sequence] = field(default_factory=list)
    members: list[Sequence] = field(default_factory=list)

    def masks(self, positions: I64, vocab: int = 0, eos: tuple[int, ...] = ()) -> Masks:
        """What sampling needs and only the collected previous step could tell: the histories that penalties look at,
        and what grammars allow. `positions` are those of the draws; `vocab` counts the logits."""
        history = []
        for r in self.penalised:
            seq, position = self.drawn[r], int(positions[r])
            if self.turns[r] == seq.turn:
                history.append((r, seq.buffer[:position].copy(), position - self.tasks[r].start))
        allowed = self._allowed(vocab, eos) if self.constrained else ()
        return Masks(history=tuple(history), allowed=allowed) if history or allowed else _NO_MASKS

    def _allowed(self, vocab: int, eos: tuple[int, ...]) -> tuple[tuple[int, U32], ...]:
        """The bitmask of each constrained draw, `[ceil(vocab/32)] uint32`."""
        rows = np.zeros((len(self.constrained), -(-vocab // 32)), np.uint32)
        live = []
        for i, (r, ahead) in enumerate(self.constrained):
            task = self.tasks[r]
            if self.turns[r] == self.drawn[r].turn and task.automaton is not None:
                allow(task, ahead, rows[i], eos)
                live.append((r, rows[i]))
        return tuple(live)


class Column:
    """int32 values that come one by one or as arrays."""

    __slots__ = ("_runs", "_tail")

    def __init__(self) -> None:
        self._runs: list[I32] = []
        self._tail: list[int] = []

    def add(self, value: int) -> None:
        """One more value."""
        self._tail.append(value)

    def extend(self, values: I32) -> None:
        """Many more; the array is kept, not copied."""
        self._seal()
        self._runs.append(values)

    def array(self) -> I32:
        """All of them `[n] int32`."""
        self._seal()
        if len(self._runs) == 1:
            return self._runs[0]
        return np.concatenate(self._runs) if self._runs else EMPTY

    def _seal(self) -> None:
        if self._tail:
            self._runs.append(np.array(self._tail, np.int32))
            self._tail = []


class Draft:
    """The step being planned. `left` is what remains of its token budget, `scorable` of the rows of logits that Scores
    and guesses may ask for beyond one for each sequence.

    Slot lists that are handed over may be views of the row table: the rows of a batch's members do not change before
    it is launched.
    """

    def __init__(self, step: int, budget: int, parameters: Parameters) -> None:
        self.step = step
        self.left = budget
        self.scorable = SCORED
        self.notes = Notes()
        self.members: set[Sequence] = set()  # who takes part
        self.ends: dict[Node, int] = {}  # a node at whose end a row of this batch stands → that row
        self.frontier: set[tuple[Node, int]] = set()  # (node, next token) that a member is going to compute
        self.count = 0
        self._parameters = parameters
        self._tokens: list[I32] = []
        self._positions: list[I32] = []
        self._slots: list[I32] = []
        self._kv: list[I32] = []
        self._new, self._seen = Column(), Column()  # per segment: new tokens, and slots that the last one sees
        self._feed, self._feed_rows = Column(), Column()
        self._rows, self._into, self._drawn_at = Column(), Column(), Column()
        self._bias: list[Bias] = []
        self._target_rows: list[int] = []
        self._target_tokens: list[int] = []
        self._target_tops: dict[int, int] = {}  # target → how many alternatives it asks for, where any

    def join(self, seq: Sequence) -> None:
        """The sequence takes part in this step."""
        if seq not in self.members:
            self.members.add(seq)
            self.notes.members.append(seq)

    def segment(self, tokens: I32, start: int, slots: I32, kv: I32) -> int:
        """Add a run of tokens at positions start...; `kv` all slots up to the last one. The index of its first
        token."""
        count = len(tokens)
        first = self._add(tokens, np.arange(start, start + count, dtype=np.int32), slots)
        self._kv.append(kv)
        self._new.add(count)
        self._seen.add(len(kv))
        return first

    def singles(self, tokens: I32, positions: I32, slots: I32, kv: list[I32]) -> int:
        """Add n segments of one token each, all `[n] int32`, `kv[i]` as in `segment`. The index of the first."""
        first = self._add(tokens, positions, slots)
        self._kv += kv
        self._new.extend(np.ones(len(tokens), np.int32))
        self._seen.extend(positions + 1)
        return first

    def _add(self, tokens: I32, positions: I32, slots: I32) -> int:
        first = self.count
        self._tokens.append(tokens)
        self._positions.append(positions)
        self._slots.append(slots)
        self.count += len(tokens)
        self.left -= len(tokens)
        return first

    def feed(self, index: int, row: int) -> None:
        """Token `index` of the batch is the one that was last sampled into `row`."""
        self._feed.add(index)
        self._feed_rows.add(row)

    def feed_all(self, indices: I32, rows: I32) -> None:
        """The same for many `[n] int32`."""
        self._feed.extend(indices)
        self._feed_rows.extend(rows)

    def draw(self, seq: Sequence, task: Generating, index: int, ahead: int = 0) -> None:
        """Sample the sequence's next token, or the one behind `ahead` guessed ones, from the logits of token
        `index`."""
        assert seq.row is not None, "only a seated sequence draws"
        self._parameters.hold(seq.row, task)
        self._rows.add(index)
        self._into.add(seq.row)
        self._drawn_at.add(seq.length + ahead)
        self._note([seq], [task], ahead)

    def draw_all(self, seqs: list[Sequence], tasks: list[Generating], rows: I32, into: I32, positions: I32) -> None:
        """The same for many whose parameters their rows hold: `rows`, `into`, `positions` `[n] int32` as in
        `Draws`."""
        self._rows.extend(rows)
        self._into.extend(into)
        self._drawn_at.extend(positions)
        self._note(seqs, tasks)

    def _note(self, seqs: list[Sequence], tasks: list[Generating], ahead: int = 0) -> None:
        notes = self.notes
        first = len(notes.drawn)
        notes.drawn += seqs
        notes.turns += [seq.turn for seq in seqs]
        notes.tasks += tasks
        for r, task in enumerate(tasks, first):
            if task.edits:
                self._edit(r, notes.drawn[r], task, ahead)
            if task.automaton is not None:
                notes.constrained.append((r, ahead))
                notes.eager = notes.eager or task.op.jump != "off"

    def _edit(self, r: int, seq: Sequence, task: Generating, ahead: int) -> None:
        """What a draw asks for beyond its row's parameters: penalties, bias, and stops that it may not sample yet."""
        s = task.op.sampling
        if s.frequency_penalty or s.presence_penalty or s.repetition_penalty != 1.0:
            self.notes.penalised.append(r)
        if s.logit_bias:
            values = np.fromiter(s.logit_bias.values(), np.float32)
            self._bias.append((r, np.fromiter(s.logit_bias, np.int32), values))
        if len(task.banned) and task.made + seq.flying + ahead < s.min_tokens:
            self._bias.append((r, task.banned, np.full(len(task.banned), -np.inf, np.float32)))

    def targets(self, rows: list[int], tokens: list[int], top: int = 0) -> int:
        """Score continuations, each with `top` alternatives; the index of the first."""
        first = len(self._target_rows)
        self._target_rows += rows
        self._target_tokens += tokens
        if top:
            self._target_tops.update(dict.fromkeys(range(first, first + len(rows)), top))
        return first

    def trie(self, trie: Trie, slots: I32, prompt: I32, row: int) -> int:
        """Add a token trie below the slots `prompt`, whose last token's logits are the batch's row `row`; `slots` for
        its inner nodes. The index of its first target."""
        slot = dict(zip(trie.inner, slots.tolist(), strict=True))
        at = {-1: row}
        for chain in trie.chains():
            above = [slot[node] for node in trie.ancestors(chain[0])]
            own = np.array([slot[node] for node in chain], np.int32)
            kv = np.concatenate([prompt, np.array(above, np.int32), own])
            tokens = np.array([trie.tokens[node] for node in chain], np.int32)
            first = self.segment(tokens, len(prompt) + len(above), own, kv)
            at.update({node: first + i for i, node in enumerate(chain)})
        return self.targets([at[parent] for parent in trie.parents], trie.tokens)

    def published(self, node: Node, row: int, next_token: int | None) -> None:
        """A member's computed tokens now end at `node`, its last one is token `row` of this batch; it goes on with
        `next_token` (None: it does not know yet)."""
        self.ends[node] = row
        if next_token is not None:
            self.frontier.add((node, next_token))

    def launch(self) -> Batch | None:
        """The frozen batch, or None when there is nothing to do."""
        if not self.count:
            assert not self.notes.drawn and not self._target_rows, "results without a computation"
            return None
        seen = _ends(self._seen.array())
        draws = self._rows.array(), self._into.array(), self._drawn_at.array()
        return Batch(
            step=self.step,
            tokens=np.concatenate(self._tokens),
            positions=np.concatenate(self._positions),
            slots=np.concatenate(self._slots),
            qo_indptr=_ends(self._new.array()),
            kv_indptr=seen,
            kv_indices=joined(self._kv, int(seen[-1])),
            feed=self._feed.array(),
            feed_rows=self._feed_rows.array(),
            draws=self._parameters.draws(*draws, tuple(self._bias)),
            targets=self._targets(),
            owner=self.notes,
        )

    def _targets(self) -> Targets:
        top = EMPTY
        if self._target_tops:
            top = np.zeros(len(self._target_rows), np.int32)
            top[list(self._target_tops)] = list(self._target_tops.values())
        return Targets(np.array(self._target_rows, np.int32), np.array(self._target_tokens, np.int32), top)


def _ends(lengths: I32) -> I32:
    """0 and the running sums of `lengths`."""
    ends = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=ends[1:])
    return ends


def joined(parts: list[I32], count: int) -> I32:
    """All parts, `[count] int32`; many at the beginning of an array of a rounded size: arrays that grow a little with
    every step would get fresh pages each time, which cost five times as much as the copy."""
    if count < _GRAIN:
        return parts[0].copy() if len(parts) == 1 else np.concatenate(parts)
    whole = np.empty(-(-count // _GRAIN) * _GRAIN, np.int32)[:count]  # covered by `out` just below
    return np.concatenate(parts, out=whole)
