"""What the pretended model does: the next token as a function of the prefix; for the ledger runner and the oracle.

In: token ids, sampling parameters. Out: prefix hashes, next tokens, logprobs: all 64-bit mixing, vectorised, no state.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ramet.runtime.batch import F32, I32, U32, U64, Draws

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_NEUTRAL = (("top_p", 1.0), ("top_k", 0.0), ("min_p", 0.0), ("frequency", 0.0), ("presence", 0.0), ("repetition", 1.0))
_EOS_SCORE = 50.0  # beyond the range of all other scores, and within reach of a logit bias of 100


def mix(values: NDArray[np.uint64]) -> U64:
    """The finaliser of splitmix64 (Steele et al. 2014), elementwise."""
    x = np.asarray(values, np.uint64) + _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)))


def _bits(values: object) -> U64:
    return np.asarray(values, np.float64).view(np.uint64)


def _uniform(hashes: U64) -> NDArray[np.float64]:
    return (hashes >> np.uint64(11)).astype(np.float64) / 2.0**53


class Law:
    """A model over `vocab` tokens. A prefix's hash is a sum over its positions of a random number of the position times
    a random number of the token (mod 2^64): it can be extended, and two prefixes share one by accident only.

    At a prefix, one of `eos` is the best token with probability `eos_rate`, else never. A draw's token depends on the
    prefix, on each sampling parameter that is not neutral (so that mixed-up parameters show), and with temperature > 0
    on seed and position.
    """

    def __init__(self, vocab: int, eos: tuple[int, ...] = (), eos_rate: float = 0.05, seed: int = 0) -> None:
        self.vocab = vocab
        self.eos = eos
        self._eos_rate = eos_rate
        base = mix(np.arange(seed * 8, seed * 8 + 4, dtype=np.uint64))
        self.start: np.uint64 = base[0]
        self._places_base = base[1]
        self._tokens = mix(np.arange(vocab, dtype=np.uint64) + base[2])
        self._logprob_salt = base[3]
        self._places = self._make_places(256)

    def _make_places(self, count: int) -> U64:
        return mix(np.arange(count, dtype=np.uint64) + self._places_base) | np.uint64(1)

    def terms(self, tokens: I32, positions: I32) -> U64:
        """What each token adds to the hash of its prefix: `[n] uint64`."""
        if len(positions) and int(positions.max()) >= len(self._places):
            self._places = self._make_places(2 * int(positions.max()) + 1)
        return self._tokens[tokens] * self._places[positions]

    def chain(self, before: np.uint64, tokens: I32, position: int) -> U64:
        """Hashes of the prefixes that end with each of `tokens` `[n]`, of which the first stands at `position`."""
        positions = np.arange(position, position + len(tokens), dtype=np.int32)
        return np.cumsum(self.terms(tokens, positions), dtype=np.uint64) + before

    def prefix(self, tokens: I32) -> np.uint64:
        """The hash of a whole prefix."""
        return np.uint64(self.chain(self.start, tokens, 0)[-1]) if len(tokens) else self.start

    def logprob(self, prefixes: U64, tokens: I32) -> F32:
        """Logprobs of tokens after prefixes, broadcast: float32 in (-10, 0]."""
        hashes = mix((np.asarray(prefixes, np.uint64) ^ self._logprob_salt) + self._tokens[tokens])
        return (_uniform(hashes) * -10.0).astype(np.float32)

    def top(self, prefix: np.uint64, k: int) -> tuple[I32, F32]:
        """The k most likely tokens after a prefix, best first."""
        values = self.logprob(np.array([prefix]), np.arange(self.vocab, dtype=np.int32))
        best = np.argsort(-values, kind="stable")[:k].astype(np.int32)
        return best, values[best]

    def draw(
        self, prefixes: U64, draws: Draws, generated: Mapping[int, int], allowed: Mapping[int, U32] | None = None
    ) -> I32:
        """The sampled tokens `[R] int32`, -1 where everything is forbidden. `prefixes[r]` is the hash of all tokens
        before the draw; `generated[r]`, for draws with penalties, how many of them the op generated; `allowed` as in
        `Masks`."""
        keys = np.array(prefixes, np.uint64)
        for i, (name, neutral) in enumerate(_NEUTRAL):
            values = np.asarray(getattr(draws, name), np.float64)
            if (values != neutral).any():
                keys ^= np.where(values == neutral, np.uint64(0), mix(_bits(values) + np.uint64(i + 1)))
        for r, count in generated.items():
            keys[r] ^= mix(np.array([count + 1], np.uint64))[0]
        if (draws.temperature > 0).any():
            noise = mix(draws.seeds) ^ mix(draws.positions.astype(np.uint64) + _GOLDEN) ^ mix(_bits(draws.temperature))
            keys ^= np.where(draws.temperature > 0, mix(noise), np.uint64(0))
        keys = mix(keys)
        scores: NDArray[np.float64] = _uniform(mix(keys[:, None] + self._tokens[None, :])) * 8.0 - 4.0
        if self.eos:
            ends = _uniform(mix(keys + np.uint64(1))) < self._eos_rate
            scores[:, self.eos] += np.where(ends, _EOS_SCORE, -_EOS_SCORE)[:, None]
        for r, tokens, biases in draws.bias:
            np.add.at(scores[r], tokens, biases)
        for r, words in (allowed or {}).items():
            bits = np.unpackbits(words.view(np.uint8), bitorder="little")[: self.vocab]
            scores[r, bits == 0] = -np.inf
        best = scores.argmax(1)
        return np.where(np.isneginf(scores.max(1)), -1, best).astype(np.int32)
