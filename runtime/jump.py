"""Text that a grammar leaves no choice about, as tokens that need no decode step; and what may be sampled elsewhere.

In: a Generate's automaton and the tokens of its value so far. Out: tokens to append (`Run.tokens`), and tokens that
should follow (`Run.guess`), which are computed along with the last known one and checked by a draw at each place.

Forced is *text*, not tokens: nearly always several tokens begin in the same way, so a mask rarely has a single bit,
while the automaton often allows one byte string alone. It is tokenised together with the tokens before it, as the
tokeniser would; of its end, whatever could still become part of a longer token once more text follows is only guessed.
So neither edge of a forced run has a token boundary that the tokeniser would not make, and no step is lost for that.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ramet.runtime.batch import U32
from ramet.runtime.boundary import blame
from ramet.runtime.grammar.base import Automaton, GrammarError
from ramet.runtime.sequence import Generating
from ramet.runtime.text import Tokenizer

CONTEXT = 8  # tokens before a forced run that are tokenised again with it
GUESSES = 16  # tokens that are checked in one step at most: each costs a row of logits


@dataclass(frozen=True, slots=True)
class Run:
    """What follows the value: `tokens` for certain, then probably `guess`. `instead`: the first of `tokens` take the
    place of the value's last token, with whose bytes they begin."""

    tokens: list[int] = field(default_factory=list)
    guess: list[int] = field(default_factory=list)
    instead: bool = False


def run(task: Generating, value: Sequence[int], tokenizer: Tokenizer, *, fresh: bool) -> Run:
    """What is known to follow `value` (its last `CONTEXT` tokens are enough), behind which the task's automaton stands;
    afterwards it stands behind `Run.tokens`. `fresh`: nobody was told of the value's last token yet, so that it may be
    replaced."""
    automaton = task.automaton
    forced = automaton.forced() if automaton is not None and task.op.jump != "off" else b""
    if automaton is None or not forced:
        return Run()
    exact = task.op.jump == "exact"
    for tokens, tail, instead in _spellings(tokenizer, value, forced, fresh=fresh and not exact):
        if exact:
            return Run(guess=tokens[:GUESSES])
        if instead:
            automaton.rollback(1)
        loose = _advance(automaton, tokenizer, tokens, tail)
        if not instead or loose < len(tokens):
            kept = len(tokens) - loose
            return Run(tokens[:kept], tokens[kept:][:GUESSES], instead)
        automaton.advance(value[-1:])  # to replace a token by a guess would be no progress
    return Run()


def _spellings(
    tokenizer: Tokenizer, value: Sequence[int], forced: bytes, *, fresh: bool
) -> Iterator[tuple[list[int], int, bool]]:
    """Ways to write forced text behind a value, best first: its tokens; how many bytes at its end may yet be tokenised
    in another way; whether the tokens take the place of the value's last one."""
    for count in sorted({min(CONTEXT, len(value)), min(1, len(value)), 0}, reverse=True):
        context = list(value[len(value) - count :])
        spelled = _spell(tokenizer, b"".join(map(tokenizer.token_bytes, context)), forced)
        if spelled is None:
            continue
        tokens, tail = spelled
        if tokens[:count] == context:
            yield tokens[count:], tail, False
        elif fresh and tokens[: count - 1] == context[:-1]:
            yield tokens[count - 1 :], tail, True


def _spell(tokenizer: Tokenizer, before: bytes, forced: bytes) -> tuple[list[int], int] | None:
    """The tokens of both together, and how many bytes at the end may yet be tokenised in another way; None where they
    have no whole characters to add or the tokenizer cannot spell them."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        text = decoder.decode(before + forced)
    except UnicodeDecodeError:  # the context begins inside a character
        return None
    whole = text.encode()
    if len(whole) <= len(before):
        return None
    tokens = tokenizer.encode(text)
    if b"".join(map(tokenizer.token_bytes, tokens)) != whole:
        return None
    return tokens, len(tokenizer.stable_split(text)[1].encode())


def _advance(automaton: Automaton, tokenizer: Tokenizer, tokens: list[int], tail: int) -> int:
    """Advance over the tokens that no continuation can change: all of them when nothing follows, else all but those
    that cover the last `tail` bytes. How many were left."""
    automaton.advance(tokens)
    if automaton.complete:
        return 0
    loose, covered = 0, 0
    while covered < tail and loose < len(tokens):
        loose += 1
        covered += len(tokenizer.token_bytes(tokens[-loose]))
    automaton.rollback(loose)
    return loose


def allow(task: Generating, ahead: int, out: U32, eos: Sequence[int]) -> None:
    """Write what may be sampled behind the value and `ahead` guessed tokens as a bitmask `[ceil(V/32)]`. Where that
    cannot be said nothing is allowed, and the task has the reason (`trouble`)."""
    automaton = task.automaton
    assert automaton is not None, "only a constrained draw has a mask"
    try:
        if ahead:
            automaton.advance(task.guess[:ahead])
        try:
            automaton.mask(out)
        finally:  # the draw may turn out to be void: then the op goes on from where it is
            if ahead:
                automaton.rollback(ahead)
    except BaseException as error:  # noqa: BLE001 (the request boundary)
        out[:] = 0
        task.trouble = str(error) if isinstance(error, GrammarError) else blame(error)
        return
    if task.op.sampling.ignore_eos:
        for token in eos:
            out[token >> 5] &= ~(1 << (token & 31)) & 0xFFFFFFFF
