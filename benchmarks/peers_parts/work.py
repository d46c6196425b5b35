"""The work that every engine is given. In: a tokenizer, sizes. Out: the parts of a job that hold prompts.

A prompt is {"ids", "text"}: peers get ids, we get the text and tokenise it. No two calls are given the same prompt, so
that no cache can serve what is timed; the calls of one figure have prompts of one length.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ramet.frontend.errors import ModelError
from ramet.runtime.text import Tokenizer

WORDS = (
    "river", "stone", "green", "walks", "seven", "light", "under", "paper", "cold", "music",
    "house", "water", "night", "table", "north", "early", "voice", "bread", "story", "small",
)  # fmt: skip
START = "Once upon a time, in a small house by the river,"
SHORT = 8  # tokens of the shorter of the two calls whose difference is a decode figure
REPEATS = 3  # of a prefill figure, and of a decode figure of at most:
FEW = 1  # sequence
Prompt = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Sizes:
    """Tokens of the prefill; batches, tokens before and tokens made of a decode figure; branches of the shared prefix,
    its tokens, those of a branch's own text, and those that a branch makes."""

    prompt: int = 512
    batches: tuple[int, ...] = (1, 8, 32, 64)
    context: int = 32
    tokens: int = 64
    branches: int = 64
    prefix: int = 1000
    own: int = 50
    made: int = 32

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return max(self.prompt + 1, self.context + SHORT + self.tokens, self.prefix + self.own + self.made)

    @property
    def kv_tokens(self) -> int:
        """KV slots of the largest call in which nothing is shared, decode; and of the shared prefix, shared."""
        decode = max(self.batches) * (self.context + SHORT + self.tokens)
        return max(self.prompt + 1, decode, self.prefix + self.branches * (self.own + self.made)) + 1024

    @property
    def columns(self) -> list[str]:
        """Names, in the order in which they are measured: the long ones last."""
        return ["start", "prefill", *(f"decode {batch}" for batch in self.batches), "prefixed", "shared"]


def job(tokenizer: Tokenizer, sizes: Sizes) -> dict[str, Any]:
    """Prompts of all columns. Raises `ModelError` where the words are not one token each."""
    draw = _Prompts(tokenizer)
    decode = {
        str(batch): {name: [draw(sizes.context) for _ in range(batch * _repeats(batch))] for name in ("short", "long")}
        for batch in sizes.batches
    }
    return {
        "start": START,
        "warm": [draw(sizes.context) for _ in range(max(sizes.batches))][:8],
        "prefill": [draw(sizes.prompt) for _ in range(REPEATS)],
        "decode": decode,
        "short": SHORT,
        "long": SHORT + sizes.tokens,
        "shared": _shared(draw, sizes),
        "prefixed": _shared(draw, sizes),
        "longest": sizes.longest,
        "kv_tokens": sizes.kv_tokens,
        "sequences": max(*sizes.batches, sizes.branches),
    }


def _repeats(batch: int) -> int:
    return REPEATS if batch <= FEW else 1


class _Prompts:
    """Prompts of an exact number of tokens, always new ones."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._rng = random.Random(7)
        self._ids = {word: tokenizer.encode(f" {word}") for word in WORDS}
        if long := [word for word, ids in self._ids.items() if len(ids) != 1]:
            raise ModelError(f"--model: {long[0]!r} is {len(self._ids[long[0]])} tokens of its vocabulary, and not one")

    def __call__(self, tokens: int) -> Prompt:
        words = self._rng.choices(WORDS, k=tokens)
        return {"ids": [self._ids[word][0] for word in words], "text": "".join(f" {word}" for word in words)}


def _shared(draw: _Prompts, sizes: Sizes) -> dict[str, Any]:
    prefix, own = draw(sizes.prefix), [draw(sizes.own) for _ in range(sizes.branches)]
    return {"prefix": prefix, "own": own, "whole": [_joined(prefix, each) for each in own], "tokens": sizes.made}


def _joined(*parts: Prompt) -> Prompt:
    return {"ids": [token for part in parts for token in part["ids"]], "text": "".join(part["text"] for part in parts)}


def agreement(ids: Sequence[int], reference: Sequence[int]) -> int:
    """How many tokens are the same from the beginning."""
    pairs = zip(ids, reference, strict=False)
    return next((at for at, (mine, theirs) in enumerate(pairs) if mine != theirs), min(len(ids), len(reference)))
