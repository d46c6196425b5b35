"""Automata of compiled programs, by llguidance: what may follow a text, token by token.

In: a program (`Compiled.program`) and the ids of tokens. Out: masks, forced bytes, whether the text may or must end.
Earley parsing over lazily built lexers of derivatives (Moskal et al., "LLGuidance"); everything here fails closed.
"""

from __future__ import annotations

import re
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from llguidance import LLMatcher, LLParserLimits

from ramet.runtime.batch import U32
from ramet.runtime.grammar.base import GrammarError
from ramet.runtime.grammar.tokens import Lexicon

if TYPE_CHECKING:
    from ramet.runtime.text import Tokenizer

DEAD_END = "nothing may follow the text so far, and it may not end: no token of the vocabulary fits"
# Masks then hold every token that is allowed, not only the one that is canonical where text is forced.
HEADER = '%llguidance {"no_forcing": true}\n'

SLOW_SECONDS, MOST_SLOW = 0.015, 8  # a step of one text that takes longer is slow; how many may be


def parser_limits() -> LLParserLimits:
    """What one automaton may cost, in llguidance's units. Measured on one core: construction at most some 20 ms of
    lexer and 100 ms in all at the largest size of a specification, a mask at most 15 ms (ordinary ones: 5 to 100 us),
    memory at most some 50 MB. The compiling process and the engine use the same, so that what one admits the other
    can follow."""
    return LLParserLimits(
        max_items_in_row=2000,  # of Earley items: some 500 optional properties of one object
        initial_lexer_fuel=1_000_000,
        step_lexer_fuel=200_000,
        step_max_items=2000,  # more makes masks of ambiguous grammars quadratically slower
        max_lexer_states=50_000,  # of 0.5 to 1 kB each
        max_grammar_size=200_000,
        verbose_errors=False,  # specifications do not belong into logs
    )


def begin(lexicon: Lexicon, program: str) -> LLMatcher:
    """The matcher of a program at its beginning. Raises `GrammarError`."""
    matcher = LLMatcher(lexicon.engine, program, log_level=0, limits=parser_limits())
    if matcher.is_error():
        raise GrammarError(_why(matcher))
    return matcher


class LLAutomaton:
    """An `Automaton` over an LLMatcher. Use it from one thread; `scratch` may be shared by the automata of a thread."""

    def __init__(self, matcher: LLMatcher, lexicon: Lexicon, scratch: U32) -> None:
        self._matcher = matcher
        self._lexicon = lexicon
        self._scratch = scratch  # [lexicon.words]
        self._target = (scratch.ctypes.data, scratch.nbytes)
        self._length = 0  # tokens followed
        self._slow = 0

    def mask(self, out: U32) -> None:
        """Write the tokens that may follow into `out` `[>= ceil(V/32)]`; what it has beyond the vocabulary is zeroed.
        Raises `GrammarError` (and `out` is all zeros) after a limit, or where nothing may follow: a dead end."""
        size = len(self._lexicon.allowed)
        out[:] = 0
        self._fill()
        row = out[:size]
        np.bitwise_and(self._scratch[:size], self._lexicon.allowed, out=row)
        if not row.any():
            raise GrammarError(DEAD_END)

    def advance(self, tokens: Sequence[int]) -> None:
        """Follow `tokens`; when one is not allowed, none is followed and `GrammarError` is raised."""
        wrong = next((t for t in tokens if not self._lexicon.spells(t)), None)
        if wrong is not None:
            raise GrammarError(f"token {wrong} is no text: end tokens, control tokens and padding are never followed")
        began = time.thread_time()
        taken = self._matcher.try_consume_tokens(list(tokens))
        self._check(began, per=len(tokens))
        if taken < len(tokens):
            self._matcher.rollback(taken)
            raise GrammarError(f"token {tokens[taken]} is not allowed after {self._length + taken} tokens")
        self._length += taken

    def rollback(self, count: int) -> None:
        """Take the last `count` tokens back, also those that completed the text. Raises `GrammarError`."""
        if not 0 <= count <= self._length:
            raise GrammarError(f"cannot take {count} tokens back: {self._length} were followed")
        if count and not self._matcher.rollback(count):
            raise GrammarError(_why(self._matcher))
        self._length -= count

    def forced(self) -> bytes:
        """What must follow: b"" where there is a choice, the end of the text being one. It may end inside a
        character."""
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
        self._fill()
        size = len(self._lexicon.allowed)
        return not (self._scratch[:size] & self._lexicon.allowed & ~self._lexicon.ends).any()

    def copy(self) -> LLAutomaton:
        """Another one at the same place; it costs some 10 to 100 us, more the more states were seen."""
        other = LLAutomaton(self._matcher.deep_copy(), self._lexicon, self._scratch)
        other._length, other._slow = self._length, self._slow
        return other

    def _fill(self) -> None:
        """Compute the mask into the scratch row. An LLMatcher that fails allows the end: so its errors come first."""
        began = time.thread_time()
        self._matcher.unsafe_compute_mask_ptr(*self._target)
        self._check(began)

    def _check(self, began: float | None = None, per: int = 1) -> None:
        """Raise what the matcher has run into. Its limits do not count what completing many ambiguous items takes (it
        grows with the square of the text), so slow steps are counted here, in CPU time of this thread."""
        if self._matcher.is_error():
            raise GrammarError(_why(self._matcher))
        if began is not None and time.thread_time() - began > SLOW_SECONDS * max(per, 1):
            self._slow += 1
        if self._slow > MOST_SLOW:
            raise GrammarError(
                f"the grammar cannot be followed: {MOST_SLOW} tokens took more than {SLOW_SECONDS * 1000:g} ms each "
                "(limit: time per token); make it less ambiguous"
            )


class GrammarCache:
    """`Grammars` by llguidance: one prototype of each program, copied for every text (least recently used ones go when
    they take more than `most_bytes`, by estimate). Belongs to one thread."""

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
        self._prototypes: OrderedDict[str, LLMatcher] = OrderedDict()
        self._most_bytes = most_bytes
        self.bytes = 0

    def automaton(self, program: str) -> LLAutomaton:
        """A fresh automaton at the beginning of `program`. Raises `GrammarError`."""
        prototype = self._prototypes.get(program)
        if prototype is None:
            prototype = self._keep(program, begin(self.lexicon, program))
        self._prototypes.move_to_end(program)
        return LLAutomaton(prototype.deep_copy(), self.lexicon, self._scratch)

    def _keep(self, program: str, prototype: LLMatcher) -> LLMatcher:
        self._prototypes[program] = prototype
        self.bytes += _estimate(program)
        while self.bytes > self._most_bytes and len(self._prototypes) > 1:
            old, _ = self._prototypes.popitem(last=False)
            self.bytes -= _estimate(old)
        return prototype


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
