"""Automata of compiled programs, by llguidance: what may follow a text, token by token.

In: a program (`Compiled.program`) and the ids of tokens. Out: masks, forced bytes, whether the text may or must end.
Earley parsing over lazily built lexers of derivatives (Moskal et al., "LLGuidance"); everything here fails closed.
"""

from __future__ import annotations

import re
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from llguidance import LLMatcher, LLParserLimits

from ramet.runtime.batch import U32
from ramet.runtime.grammar.base import GrammarError
from ramet.runtime.grammar.lanes import marked, widened
from ramet.runtime.grammar.tokens import MOST_LEFT, Lexicon

if TYPE_CHECKING:
    from ramet.runtime.text import Tokenizer

DEAD_END = "nothing may follow the text so far, and it may not end: no token of the vocabulary fits"
# Masks then hold every token that is allowed, not only the one that is canonical where text is forced.
HEADER = '%llguidance {"no_forcing": true}\n'

SLOW_SECONDS, MOST_SLOW = 0.015, 8  # a step of one text that takes longer is slow; how many may be
# Copies of a matcher share its lexer, which keeps every state that any text needed, up to `max_lexer_states`; making
# them is what takes time. A prototype that was worked on for so long gives way to a new one, which has none yet.
CHEAP_SECONDS, WORN_SECONDS = 50e-6, 0.5
WORN_BYTES = 48 << 20  # of states that a second makes: measured, from above
MOST_RENEWALS = 3  # of one text
_FULL = "too many states"
T = TypeVar("T")


MOST_STATES = 50_000  # of a lexer, of 0.5 to 1 kB each


def parser_limits(states: int = MOST_STATES) -> LLParserLimits:
    """What one automaton may cost, in llguidance's units. Measured on one core: construction at most some 20 ms of
    lexer and 100 ms in all at the largest size of a specification, a mask at most 15 ms (ordinary ones: 5 to 100 us),
    memory at most some 50 MB. The compiling process allows fewer states than the engine and else the same, so that what
    it admits the engine can follow."""
    return LLParserLimits(
        max_items_in_row=2000,  # of Earley items: some 500 optional properties of one object
        initial_lexer_fuel=1_000_000,
        step_lexer_fuel=200_000,
        step_max_items=2000,  # more makes masks of ambiguous grammars quadratically slower
        max_lexer_states=states,
        max_grammar_size=200_000,
        verbose_errors=False,  # specifications do not belong into logs
    )


def begin(lexicon: Lexicon, program: str, states: int = MOST_STATES) -> LLMatcher:
    """The matcher of a program at its beginning; its lexer may have `states`. Raises `GrammarError`."""
    matcher = LLMatcher(lexicon.engine, widened(program), log_level=0, limits=parser_limits(states))
    if matcher.is_error():
        raise GrammarError(_why(matcher))
    return matcher


class Prototype:
    """A program's matcher at its beginning. `worn`: seconds that were spent on making states of its lexer."""

    __slots__ = ("matcher", "program", "worn")

    def __init__(self, program: str, matcher: LLMatcher) -> None:
        self.program = program
        self.matcher = matcher
        self.worn = 0.0

    @property
    def is_worn(self) -> bool:
        """Whether a new one should take its place."""
        return self.worn > WORN_SECONDS

    @property
    def bytes(self) -> int:
        """What it takes, by estimate."""
        return _estimate(self.program) + int(self.worn * WORN_BYTES)


class _Full(GrammarError):
    """The lexer that a matcher shares with others has as many states as it may."""


class LLAutomaton:
    """An `Automaton` over a copy of a prototype's LLMatcher. Use it from one thread; `scratch` may be shared by the
    automata of a thread. `renew` gives another prototype of the same program for one whose lexer is full: the text so
    far is followed again there."""

    def __init__(
        self,
        prototype: Prototype,
        lexicon: Lexicon,
        scratch: U32,
        renew: Callable[[Prototype], Prototype] | None = None,
    ) -> None:
        self._prototype = prototype
        self._matcher = prototype.matcher.deep_copy()
        self._lexicon = lexicon
        self._scratch = scratch  # [lexicon.words]
        self._target = (scratch.ctypes.data, scratch.nbytes)
        self._renew = renew
        self._renewals = 0
        self._followed: list[int] = []
        self._allowed: U32 | None = None  # what may follow here, once somebody has asked
        self._slow = 0
        self._lanes = marked(prototype.program)
        self._counts = [lexicon.count] * MOST_LEFT

    def mask(self, out: U32) -> None:
        """Write the tokens that may follow into `out` `[>= ceil(V/32)]`; what it has beyond the vocabulary is zeroed.
        Raises `GrammarError` (and `out` is all zeros) after a limit, or where nothing may follow: a dead end."""
        out[:] = 0
        row = self._here()
        if not row.any():
            raise GrammarError(DEAD_END)
        out[: len(row)] = row

    def _here(self) -> U32:
        """The tokens that may follow, `[ceil(V/32)]`; computed once at each place, for whether it is the end and for
        the mask."""
        if self._allowed is None:
            left = self._lasting(self._fill)
            self._allowed = self._scratch[: len(self._lexicon.allowed)] & self._lexicon.allowed
            if self._lanes:
                self._allowed &= ~self._lexicon.raw
            if left is not None:
                self._allowed &= ~self._lexicon.longer[left]
        return self._allowed

    def advance(self, tokens: Sequence[int]) -> None:
        """Follow `tokens`; when one is not allowed, none is followed and `GrammarError` is raised."""
        for token in tokens:
            if not self._lexicon.spells(token):
                raise GrammarError(
                    f"token {token} is no text: end tokens, control tokens and padding are never followed"
                )
        if self._lanes and any(self._lexicon.is_raw(t) for t in tokens):
            raise GrammarError("a control character is not allowed where JSON is")
        self._lasting(lambda: self._follow(tokens))

    def _follow(self, tokens: Sequence[int]) -> None:
        began = time.thread_time()
        taken = self._matcher.try_consume_tokens(list(tokens))
        self._check(began, per=len(tokens))
        if taken < len(tokens):
            self._matcher.rollback(taken)
            self._fill()  # a full lexer refuses a token before it says why
            raise GrammarError(f"token {tokens[taken]} is not allowed after {len(self._followed) + taken} tokens")
        self._followed += tokens
        if tokens:
            self._allowed = None

    def rollback(self, count: int) -> None:
        """Take the last `count` tokens back, also those that completed the text. Raises `GrammarError`."""
        if not 0 <= count <= len(self._followed):
            raise GrammarError(f"cannot take {count} tokens back: {len(self._followed)} were followed")
        if count:
            if not self._matcher.rollback(count):
                raise GrammarError(_why(self._matcher))
            del self._followed[-count:]
            self._allowed = None

    def forced(self) -> bytes:
        """What must follow: b"" where there is a choice, the end of the text being one. It may end inside a
        character."""
        return self._lasting(self._forced)

    def _forced(self) -> bytes:
        found = self._matcher.compute_ff_bytes()
        self._check()
        return found

    @property
    def accepting(self) -> bool:
        """Whether the text may end here."""
        return not self._matcher.is_error() and self._matcher.is_accepting()

    @property
    def complete(self) -> bool:
        """Whether it must end here: it is accepted, and no token can follow."""
        if not self.accepting:
            return False
        if self._matcher.is_stopped():
            return True
        # mostly there is a choice, and it shows without a mask: in a class of characters, what came may come again
        if self._followed and self._matcher.validate_tokens(self._followed[-1:]):
            return False
        return not (self._here() & ~self._lexicon.ends).any()

    def copy(self) -> LLAutomaton:
        """Another one at the same place; it costs some 10 to 100 us, more the more states were seen."""
        other = LLAutomaton(self._prototype, self._lexicon, self._scratch, self._renew)
        other._matcher = self._matcher.deep_copy()
        other._followed, other._slow, other._renewals = list(self._followed), self._slow, self._renewals
        return other

    def _lasting(self, work: Callable[[], T]) -> T:
        """Do `work`; once more on another lexer when the one that is shared is full."""
        try:
            return work()
        except _Full:
            if self._renew is None or self._renewals >= MOST_RENEWALS:
                raise
            self._renewals += 1
            self._prototype = self._renew(self._prototype)
            self._matcher = self._prototype.matcher.deep_copy()
            tokens, self._followed = self._followed, []
            self._follow(tokens)
            return work()

    def _fill(self) -> int | None:
        """Compute the mask into the scratch row. An LLMatcher that fails allows the end: so its errors come first.
        Where a counted string has few characters left, it holds all plain tokens, and the result is that number."""
        began = time.thread_time()
        left = self._matcher.validate_tokens(self._counts) if self._lanes else 0
        gate = 0 < left < MOST_LEFT and self._matcher.try_consume_tokens([self._lexicon.gate]) == 1
        self._matcher.unsafe_compute_mask_ptr(*self._target)
        self._check(began)
        if gate:
            self._matcher.rollback(1)
        return left if gate else None

    def _check(self, began: float | None = None, per: int = 1) -> None:
        """Raise what the matcher has run into. Its limits do not count what completing many ambiguous items takes (it
        grows with the square of the text), so slow steps are counted here, in CPU time of this thread."""
        known, self._allowed = self._allowed, None  # after a limit nothing is
        if self._matcher.is_error():
            kind = _Full if _FULL in self._matcher.get_error() else GrammarError
            raise kind(_why(self._matcher))
        if began is not None:
            spent, steps = time.thread_time() - began, max(per, 1)
            self._prototype.worn += max(0.0, spent - CHEAP_SECONDS * steps)
            self._slow += spent > SLOW_SECONDS * steps
        if self._slow > MOST_SLOW:
            raise GrammarError(
                f"the grammar cannot be followed: {MOST_SLOW} tokens took more than {SLOW_SECONDS * 1000:g} ms each "
                "(limit: time per token); make it less ambiguous"
            )
        self._allowed = known


class GrammarCache:
    """`Grammars` by llguidance: one prototype of each program, copied for every text (least recently used ones go when
    they take more than `most_bytes`, by estimate; worn ones give way to new ones). Belongs to one thread."""

    def __init__(
        self,
        tokenizer: Tokenizer | Sequence[bytes],
        vocab: int | None = None,
        eos: Iterable[int] = (),
        *,
        most_bytes: int = 256 << 20,
    ) -> None:
        self.lexicon = Lexicon.of(tokenizer, eos, vocab)
        self._scratch = np.zeros(self.lexicon.words, np.uint32)
        self._prototypes: OrderedDict[str, Prototype] = OrderedDict()
        self._most_bytes = most_bytes

    @property
    def bytes(self) -> int:
        """What the prototypes take, by estimate."""
        return sum(prototype.bytes for prototype in self._prototypes.values())

    def automaton(self, program: str, *, worn: bool = False) -> LLAutomaton:
        """A fresh automaton at the beginning of `program`; `worn`: a worn prototype will do. Raises `GrammarError`."""
        prototype = self._prototypes.get(program)
        if prototype is None or (prototype.is_worn and not worn):
            prototype = self.keep(program, begin(self.lexicon, program))
        self._prototypes.move_to_end(program)
        return LLAutomaton(prototype, self.lexicon, self._scratch, self._renewed)

    def _renewed(self, old: Prototype) -> Prototype:
        """The prototype that took the place of a full one; the first who asks makes it."""
        current = self._prototypes.get(old.program)
        if current is None or current is old:
            return self.keep(old.program, begin(self.lexicon, old.program))
        return current

    def known(self, program: str) -> Prototype | None:
        """The prototype of a program, where there is one."""
        return self._prototypes.get(program)

    def keep(self, program: str, matcher: LLMatcher) -> Prototype:
        """Take a matcher at the beginning of `program` for its prototype."""
        prototype = self._prototypes[program] = Prototype(program, matcher)
        while len(self._prototypes) > 1 and self.bytes > self._most_bytes:
            self._prototypes.popitem(last=False)
        return prototype

    def prepare(self, program: str, owner: str) -> bool:
        """True: what is missing is built where it is asked for (foundry.py builds it elsewhere)."""
        return True

    def built(self) -> list[str]:
        """Nobody waits."""
        return []

    def forget(self, owner: str) -> None:
        """Nobody waits."""

    def warm(self) -> None:
        """It is warm."""

    def close(self) -> None:
        """Nothing runs."""


def _estimate(program: str) -> int:
    """Bytes of a matcher that has followed nothing yet, from above: measured on schemas, patterns and lists."""
    return (768 << 10) + 64 * len(program)


def _why(matcher: LLMatcher) -> str:
    """llguidance's message without the state that it appends."""
    lines = matcher.get_error().split("<non-verbose/>")[0].split("<state>")[0].strip().splitlines()
    if not lines or lines[0] == "NoExtensionBias":  # what it says when it has found no token
        return DEAD_END
    if re.search("(?i)too (many|large|big|complex)|max is", lines[0]):
        return f"the grammar cannot be followed: it is too costly (limit: cost of a token): {lines[0]}"
    return f"the grammar cannot be followed: {lines[0]}"
