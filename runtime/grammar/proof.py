"""From a constraint to a program that the engine can follow: translated, then tried out under the engine's limits.

In: a constraint, a vocabulary. Out: `Compiled`, or a `ConstraintError` that says what is wrong. Its cost is bounded by
nothing here: run it in a process that can be killed (child.py).
"""

from __future__ import annotations

import random

import numpy as np

from ramet.frontend import ir
from ramet.frontend.errors import ConstraintError
from ramet.runtime.batch import U32
from ramet.runtime.grammar.automaton import DEAD_END, HEADER, LLAutomaton, Prototype, begin
from ramet.runtime.grammar.base import Compiled, GrammarError
from ramet.runtime.grammar.limits import SpecLimits, label
from ramet.runtime.grammar.tokens import EXACT, Lexicon, Speller
from ramet.runtime.grammar.translate import translate
from ramet.runtime.grammar.translation import Translation

WALKS, STEPS = 2, 32  # random texts that are begun, and their tokens
# States of the lexer that these may need. Ordinary specifications need some hundreds; one that needs new states with
# every token, as counts of counts of wide classes do, would fill the engine's lexer within some dozens of texts.
STATES = 3000


class Prover:
    """Compiles for one vocabulary."""

    def __init__(self, lexicon: Lexicon, limits: SpecLimits) -> None:
        self._lexicon = lexicon
        self._limits = limits
        self._speller = Speller(lexicon.text)
        self._scratch: U32 = np.zeros(lexicon.words, np.uint32)
        self._row: U32 = np.zeros(len(lexicon.allowed), np.uint32)

    def compile(self, constraint: ir.Constraint) -> Compiled:
        """Translate, and prove that texts exist, that a shortest one is accepted, and that random ones can be followed.
        Raises `ConstraintError`."""
        translation = self._translated(constraint)
        program = HEADER + translation.lark
        if len(program.encode()) > self._limits.program_bytes:
            raise ConstraintError(
                f"{label(constraint)}: becomes more than {self._limits.program_bytes} bytes of rules "
                "(limit: generated size); simplify it"
            )
        try:
            automaton = LLAutomaton(
                Prototype(program, begin(self._lexicon, program, STATES)), self._lexicon, self._scratch
            )
            self._nonempty(automaton)
            shortest = self._spelt(automaton, translation)
            for seed in range(WALKS):
                self._walk(automaton.copy(), random.Random(seed))
        except GrammarError as error:
            raise ConstraintError(f"{label(constraint)}: {error}") from None
        if isinstance(constraint, ir.Choices):
            shortest = min((n for c in constraint.choices if (n := self._speller.fewest(c.encode()))), default=0)
        return Compiled(program=program, shortest=shortest, longest=translation.longest or 0, notes=translation.notes)

    def _translated(self, constraint: ir.Constraint) -> Translation:
        name = label(constraint)
        try:
            return translate(constraint)
        except ConstraintError as error:
            if error.message.startswith(name.split("=")[0]):
                raise
            raise ConstraintError(f"{name}: {error.message}") from None

    def _nonempty(self, automaton: LLAutomaton) -> None:
        if automaton.complete:
            return
        try:
            automaton.copy().mask(self._row)
        except GrammarError as error:
            if str(error) != DEAD_END:  # a limit
                raise
            raise GrammarError(
                f"no text satisfies it, or none that the model's vocabulary can spell ({error})"
            ) from None

    def _spelt(self, automaton: LLAutomaton, translation: Translation) -> int:
        """The fewest tokens of the shortest text, which is taken through the automaton; 0 when it is not known, or
        needs a byte that the vocabulary lacks (another text may do without)."""
        text = translation.shortest
        if text is None:
            return 0
        if len(text) > min(EXACT, STATES // 2):  # each byte may need a state of its own
            return self._speller.fewest(text) or 0
        ids = self._speller.spell(text)
        if ids is None:
            return 0
        probe = automaton.copy()
        probe.advance(ids)
        if not probe.accepting:
            raise GrammarError(
                f"its translation is wrong: {text[:80]!r} should be accepted and is not (a defect of ramet)"
            )
        return len(ids)

    def _walk(self, automaton: LLAutomaton, draw: random.Random) -> None:
        """Follow one random text for some tokens: limits and dead ends that are met soon are found now."""
        for _ in range(STEPS):
            if automaton.complete:
                return
            automaton.mask(self._row)
            texts = self._row & ~self._lexicon.ends
            words = np.flatnonzero(texts)
            if not len(words):
                return
            word = int(words[draw.randrange(len(words))])
            bits = [b for b in range(32) if int(texts[word]) >> b & 1]
            automaton.advance([word * 32 + draw.choice(bits)])
