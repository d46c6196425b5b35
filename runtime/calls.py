"""How calls begin: a Generate, Choose or Score against the sequence that it continues.

In: the op, and how many tokens stand before it. Out: the task that it becomes, or `Refused` for what can never be
carried out.
"""

from __future__ import annotations

from dataclasses import dataclass

from ramet.runtime import messages as m
from ramet.runtime.grammar.base import Automaton, GrammarError, Grammars
from ramet.runtime.sequence import Choosing, Generating, Scoring, Task
from ramet.runtime.text import Tokenizer


class Refused(Exception):
    """A call that cannot be carried out; `kind` is a key of `frontend.errors.FAILURES`."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message


@dataclass(frozen=True, slots=True)
class Bounds:
    """How long a sequence may get: the model's `context` and the KV pool's `capacity`, in tokens."""

    context: int
    capacity: int

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return min(self.context, self.capacity)

    def too_long(self, what: str) -> str:
        """The message for `what` does not fit."""
        if self.context <= self.capacity:
            return f"{what} do not fit the context of {self.context} tokens; shorten the text"
        return f"{what} do not fit the KV pool of {self.capacity} tokens; shorten the text or raise kv_tokens"


def begin(
    op: m.Generate | m.Choose | m.Score,
    known: int,
    bounds: Bounds,
    *,
    eos: tuple[int, ...],
    tokenizer: Tokenizer | None,
    now: float,
) -> Task:
    """The task of `op` after `known` tokens. Raises `Refused`."""
    if not known:
        doing = {m.Generate: "generating", m.Choose: "selecting", m.Score: "scoring"}[type(op)]
        raise Refused("generation", f"the prompt is empty: append text before {doing}")
    if isinstance(op, m.Score):
        score = Scoring(op, known, now)
        score.end = min(score.end, bounds.longest)  # a choice may have filled the pool: its last token has no slot
        score.at = min(score.at, score.end - 1)
        return score
    if isinstance(op, m.Choose):
        return _choosing(op, known, bounds, now)
    room = bounds.longest - known
    if room <= 0:
        raise Refused("context", bounds.too_long(f"{known} tokens of prompt and a new one"))
    limit = min(op.sampling.max_tokens or room, room, op.longest or room)  # a token has one byte at least
    return Generating(op, known, limit, eos=eos, tokenizer=tokenizer, now=now)


def _choosing(op: m.Choose, known: int, bounds: Bounds, now: float) -> Choosing:
    task = Choosing(op, known, now)
    longest = known + max(len(choice) for choice in op.choices)
    slots = known + task.size
    if longest > bounds.context or slots > bounds.capacity:
        raise Refused("context", bounds.too_long(f"{max(longest, slots)} tokens of prompt and choices"))
    return task


def automaton(grammars: Grammars | None, program: str) -> Automaton:
    """What a constrained Generate follows. Raises `Refused`."""
    if grammars is None:
        raise Refused("generation", "this engine has no grammars")
    try:
        return grammars.automaton(program)
    except GrammarError as error:
        raise Refused("constraint", str(error)) from None
