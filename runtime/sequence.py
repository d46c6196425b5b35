"""The only mutable state of a request: one branch's tokens, where their KV lies, and what it is doing now.

In: tokens appended by ops, tokens sampled by flights. Out: what the scheduler reads to plan. A sequence has tokens
*known* to the host, tokens *flying* (sampled by a flight that was not collected yet) and tokens *computed* (their KV
is written or being written). There is no prefill phase and no decode phase: each step computes some of the difference.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import numpy as np

from ramet.runtime import messages as m
from ramet.runtime.batch import I32
from ramet.runtime.choices import Trie
from ramet.runtime.grammar.base import Automaton
from ramet.runtime.lack import Lack
from ramet.runtime.lengths import Site
from ramet.runtime.radix import Node
from ramet.runtime.text import Detokenizer, StopMatcher, Tokenizer

if TYPE_CHECKING:
    from ramet.runtime.programs import Program

NO_SLOTS: I32 = np.zeros(0, np.int32)
NO_SLOTS.setflags(write=False)


class Call:
    """Bookkeeping that Generate, Choose and Score share: when and how its prompt was computed. Times are the clock's
    seconds."""

    __slots__ = (
        "announced",
        "arrived",
        "away",
        "began",
        "beside",
        "computed",
        "end",
        "first",
        "first_step",
        "lack",
        "launched",
        "prompt",
        "retractions",
        "starved",
    )

    def __init__(self, prompt: int, now: float) -> None:
        self.prompt = prompt  # tokens before the op
        self.end = prompt  # of those, the ones that have to be computed
        self.computed = 0  # of those, the ones that were computed for it
        self.arrived = now
        self.began = -1.0  # when it was first part of a batch
        self.first_step = -1
        self.launched = False  # a Choose or Score: all that it wants is in the air
        self.announced = False  # the client knows that its prompt is computed
        self.first = -1.0  # when its first token was there
        self.beside = 0  # tokens computed for it that are none of the sequence's: tries, guesses
        self.retractions = 0
        self.away = -1.0  # since when it has been retracted
        self.lack = 0.0  # the scheduler's lack of memory when it began to wait
        self.starved = 0.0  # seconds for which it waited for memory

    def seated(self, lack: Lack, now: float) -> None:
        """Its wait, if it had one, is over."""
        total = lack.total(now)
        self.starved += now - self.away if self.away >= 0 else total - self.lack
        self.away, self.lack = -1.0, total

    @property
    def cached(self) -> int:
        """Tokens of the prompt that were not computed for it."""
        return max(self.end - self.computed, 0)


class Generating(Call):
    """A Generate under way. Its value is `tokens[start : start + made]` of the sequence. With a constraint `automaton`
    stands behind these tokens; `guess` are tokens that should follow, `lent` the KV slots of those of them that are in
    the air."""

    __slots__ = (
        "automaton",
        "banned",
        "detokenizer",
        "drawn",
        "edits",
        "ends",
        "expected",
        "forced",
        "guess",
        "held",
        "lent",
        "limit",
        "made",
        "op",
        "plain",
        "sent",
        "start",
        "stops",
        "trouble",
    )

    def __init__(
        self,
        op: m.Generate,
        start: int,
        limit: int,
        *,
        eos: tuple[int, ...] = (),
        tokenizer: Tokenizer | None = None,
        now: float,
    ) -> None:
        super().__init__(start, now)
        s = op.sampling
        self.op = op
        self.start = start
        self.limit = limit  # tokens that it may sample at most
        self.expected = limit  # of those, the ones that its call site makes one expect
        self.made = 0  # tokens sampled and collected, or forced
        self.sent = 0  # of those, tokens in the value so far (an end token is not)
        self.forced = 0  # of those, tokens that needed no decode step of their own
        self.drawn = False  # its first draw was launched: the prompt is behind it
        self.automaton: Automaton | None = None
        self.guess: list[int] = []
        self.lent = NO_SLOTS
        self.held: list[m.AnyNews] = []  # what is to be told once the prompt is announced
        self.trouble = ""  # why no mask could be made
        self.stops: StopMatcher | None = None
        self.detokenizer: Detokenizer | None = None
        self.ends = frozenset(s.stop_token_ids if s.ignore_eos else (*eos, *s.stop_token_ids))  # tokens that end it
        self.banned: I32 = np.array((*eos, *s.stop_token_ids) if s.min_tokens else (), np.int32)  # until min_tokens
        penalties = (s.frequency_penalty, s.presence_penalty, s.repetition_penalty)
        self.edits = penalties != (0.0, 0.0, 1.0) or bool(s.logit_bias) or bool(s.min_tokens)  # its draws change logits
        self.plain = not (s.stop or s.logprobs >= 0 or op.grammar)  # of a sampled token nothing but its id is asked
        if s.stop:
            if tokenizer is None:
                raise ValueError("stop strings need a tokenizer in the engine")
            self.stops, self.detokenizer = StopMatcher(s.stop), Detokenizer(tokenizer)


class Choosing(Call):
    """A Choose under way. `slots` are the KV slots of the trie's inner nodes while its forward is in the air,
    `extra` those of the unconditional scores."""

    __slots__ = ("extra", "op", "slots", "trie")

    def __init__(self, op: m.Choose, prompt: int, now: float) -> None:
        super().__init__(prompt, now)
        self.op = op
        self.trie = Trie(op.choices)
        self.slots = NO_SLOTS
        self.extra = NO_SLOTS

    @property
    def size(self) -> int:
        """KV slots that the scores need beyond the prompt's."""
        context, inner = len(self.op.context), len(self.trie.inner)
        return inner + (context + inner if context else 0)


class Scoring(Call):
    """A Score under way. Tokens from `at` on are still to be computed for it, also where the cache has them: it wants
    their logits. `told` is the first position of which the client was told nothing.

    The logits of the last token predict nothing that is known, so it is left to the next call; where there is nothing
    to score at all, it alone is computed, so that a Score always ends with a batch.
    """

    __slots__ = ("at", "op", "told")

    def __init__(self, op: m.Score, prompt: int, now: float) -> None:
        super().__init__(prompt, now)
        self.op = op
        first = max(op.start - 1, 0)
        self.end = prompt - 1 if first < prompt - 1 else prompt
        self.at = min(first, self.end - 1)
        self.told = op.start


Task = Generating | Choosing | Scoring


class Sequence:
    """One branch. Invariants: positions below `node.depth` are in the tree; [node.depth, computed) are its private
    slots, and only a Generate or Score under way has any; `computed <= known + flying`; without a row there are no
    private slots."""

    __slots__ = (
        "again",
        "age",
        "base",
        "buffer",
        "closed",
        "computed",
        "failed",
        "flying",
        "fresh",
        "joined",
        "known",
        "lost",
        "marks",
        "name",
        "node",
        "ops",
        "order",
        "parent",
        "program",
        "row",
        "since",
        "task",
        "turn",
    )

    def __init__(self, program: Program, name: str, order: int) -> None:
        self.program = program
        self.name = name
        self.order = order  # age among all sequences: lower is older
        self.age = (program.order, order)  # the programs' order first
        self.buffer: I32 = np.zeros(64, np.int32)
        self.known = 0
        self.flying = 0
        self.computed = 0
        self.fresh = 0  # tokens computed since the last op ended: what the next call's prompt cost
        self.again = 0  # of those, tokens that had been computed and were lost
        self.lost = 0  # positions below it were computed once, and may be gone
        self.base = 0  # length at the fork that made it
        self.parent: Sequence | None = None  # whose fork that was
        self.joined = 0  # branches of the Join that waits first, whose texts are here already
        self.marks: list[tuple[Site, int]] = []  # where its calls began: their sites, and its length then
        self.node: Node | None = None
        self.row: int | None = None
        self.ops: deque[m.AnyOp] = deque()
        self.task: Task | None = None
        self.turn = 0  # draws of an earlier turn are dropped when they arrive
        self.closed = False
        self.failed: tuple[str, str] | None = None  # kind and message: what poisoned it
        self.since = 0.0  # when it began to wait or rest

    def lose(self) -> None:
        """Its KV goes, or may go: what is computed again from now on has been computed before."""
        self.lost = max(self.lost, self.computed)

    def void(self) -> None:
        """What is in the air for it is dropped when it arrives, and asked for again."""
        self.turn += 1
        self.flying = 0
        if self.task is not None:
            self.task.launched = False
        if isinstance(self.task, Scoring):
            self.task.at = min(max(self.task.told - 1, 0), self.task.end - 1)

    @property
    def length(self) -> int:
        """Tokens that exist, collected or flying."""
        return self.known + self.flying

    def foresee(self, tokens: list[int]) -> None:
        """Write tokens that may follow behind the known ones, which stay as many as they are."""
        end = self.known + len(tokens)
        if end > len(self.buffer):
            self._grow(end)
        self.buffer[self.known : end] = tokens

    @property
    def depth(self) -> int:
        """Tokens whose KV is in the tree under this sequence's lock."""
        return self.node.depth if self.node is not None else 0

    def tokens(self, start: int, stop: int) -> I32:
        """A view of the known tokens [start, stop) `int32`."""
        return self.buffer[start:stop]

    def append(self, tokens: I32) -> None:
        """Add known tokens."""
        end = self.known + len(tokens)
        if end > len(self.buffer):
            self._grow(end)
        self.buffer[self.known : end] = tokens
        self.known = end

    def push(self, token: int) -> None:
        """Add one known token."""
        if self.known == len(self.buffer):
            self._grow(self.known + 1)
        self.buffer[self.known] = token
        self.known += 1

    def _grow(self, end: int) -> None:
        grown = np.zeros(max(end, 2 * len(self.buffer)), np.int32)
        grown[: self.known] = self.buffer[: self.known]
        self.buffer = grown

    def goal(self) -> int:
        """How many tokens should be computed now: all of them if the current op needs logits, else all but the last
        (whose logits the next op will want: computing it early would mean computing it twice)."""
        task = self.task
        if isinstance(task, Generating):
            return self.length if task.made + self.flying < task.limit else self.computed
        if task is not None:
            return self.computed if task.launched else task.end
        return max(self.known - 1, self.computed)

    def reach(self) -> int:
        """How far it may follow what others have computed. The last token's logits it wants itself, or will; and so
        does a Score with every token from its start on."""
        last = max(self.known - 1, 0)
        return min(last, self.task.at) if isinstance(self.task, Scoring) else last

    def wants_work(self) -> bool:
        """True when a step could compute something for it."""
        return self.goal() > self.computed

    def is_sampling(self) -> bool:
        """True when it has sampled, or is sampling, a token of its op: the op's prompt is behind it."""
        return isinstance(self.task, Generating) and self.task.drawn
