"""What the pretended model does: the next token as a function of the prefix; for the ledger runner and the oracle.

In: token ids, sampling parameters. Out: prefix hashes, next tokens, logprobs: all 64-bit mixing, vectorised, no state.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ramet.runtime.batch import F32, I32, U32, U64, Draws

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_PARAMETERS = ("temperature", "top_p", "top_k", "min_p", "frequency", "presence", "repetition")
_NEUTRAL = (1.0, 0.0, 0.0, 0.0, 0.0, 1.0)  # of all but the first
_WORD = (1 << 64) - 1
_EOS_SCORE = 50.0  # beyond the range of all other scores, and within reach of a logit bias of 100


def mix(values: NDArray[np.uint64]) -> U64:
    """The finaliser of splitmix64 (Steele et al. 2014), elementwise."""
    x = np.asarray(values, np.uint64) + _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)))


def scramble(value: int) -> int:
    """The same for one integer, of which the lowest 64 bits count."""
    x = (value + 0x9E3779B97F4A7C15) & _WORD
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _WORD
    return x ^ (x >> 31)


@lru_cache(1 << 12)
def _bits_of(value: float) -> int:
    return int.from_bytes(struct.pack("<d", value), "little")


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
        self._picked: dict[tuple[int, bytes, bytes], int] = {}  # draws that were asked for before
        self._factors = self._tokens.tolist()
        self._keep(self._make_places(256))

    def _keep(self, places: U64) -> None:
        self._places: U64 = places
        self._place_of: list[int] = places.tolist()

    def _make_places(self, count: int) -> U64:
        return mix(np.arange(count, dtype=np.uint64) + self._places_base) | np.uint64(1)

    def terms(self, tokens: I32, positions: I32) -> U64:
        """What each token adds to the hash of its prefix: `[n] uint64`."""
        if len(positions) and int(positions.max()) >= len(self._places):
            self._keep(self._make_places(2 * int(positions.max()) + 1))
        return self._tokens[tokens] * self._places[positions]

    def chain(self, before: np.uint64, tokens: I32, position: int) -> U64:
        """Hashes of the prefixes that end with each of `tokens` `[n]`, of which the first stands at `position`."""
        positions = np.arange(position, position + len(tokens), dtype=np.int32)
        return np.cumsum(self.terms(tokens, positions), dtype=np.uint64) + before

    def prefix(self, tokens: I32) -> np.uint64:
        """The hash of a whole prefix."""
        return np.uint64(self.chain(self.start, tokens, 0)[-1]) if len(tokens) else self.start

    def follow(self, prefix: int, token: int, position: int) -> int:
        """The hash of a prefix with one more token, which stands at `position`."""
        if position >= len(self._place_of):
            self._keep(self._make_places(2 * position + 1))
        return (prefix + self._factors[token] * self._place_of[position]) & _WORD

    def own(self, prefix: int, token: int) -> float:
        """`logprob` of one token."""
        hashed = scramble((prefix ^ int(self._logprob_salt)) + self._factors[token])
        return float(np.float32((hashed >> 11) / 2.0**53 * -10.0))

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
        columns = [np.asarray(getattr(draws, name), np.float64).tolist() for name in _PARAMETERS]
        biases: dict[int, list[tuple[I32, F32]]] = {}
        for r, tokens, values in draws.bias:
            biases.setdefault(r, []).append((tokens, values))
        words = allowed or {}
        found = [
            self.pick(prefix, parameters, seed, position, generated.get(r), biases.get(r, ()), words.get(r))
            for r, (prefix, parameters, seed, position) in enumerate(
                zip(
                    prefixes.tolist(),
                    zip(*columns, strict=True),
                    draws.seeds.tolist(),
                    draws.positions.tolist(),
                    strict=True,
                )
            )
        ]
        return np.array(found, np.int32)

    def pick(
        self,
        prefix: int,
        parameters: tuple[float, ...],
        seed: int,
        position: int,
        generated: int | None = None,
        bias: Sequence[tuple[I32, F32]] = (),
        allowed: U32 | None = None,
    ) -> int:
        """One draw: `parameters` are its temperature, top_p, top_k, min_p and penalties, in that order."""
        temperature, *others = parameters
        key = prefix
        for i, (value, neutral) in enumerate(zip(others, _NEUTRAL, strict=True)):
            if value != neutral:
                key ^= scramble(_bits_of(value) + i + 1)
        if generated is not None:
            key ^= scramble(generated + 1)
        if temperature > 0:
            key ^= scramble(scramble(seed) ^ scramble(position + int(_GOLDEN)) ^ scramble(_bits_of(temperature)))
        key = scramble(key)
        edits = b"".join(tokens.tobytes() + b"|" + values.tobytes() for tokens, values in bias)
        known = (key, edits, b"" if allowed is None else allowed.tobytes())
        token = self._picked.get(known)
        if token is None:
            token = self._picked[known] = self._best(key, bias, allowed)
        return token

    def _best(self, key: int, bias: Sequence[tuple[I32, F32]], allowed: U32 | None) -> int:
        scores: NDArray[np.float64] = _uniform(mix(np.uint64(key) + self._tokens)) * 8.0 - 4.0
        if self.eos:
            ends = (scramble(key + 1) >> 11) / 2.0**53 < self._eos_rate
            scores[list(self.eos)] += _EOS_SCORE if ends else -_EOS_SCORE
        for tokens, biases in bias:
            np.add.at(scores, tokens, biases)
        if allowed is not None:
            bits = np.unpackbits(allowed.view(np.uint8), bitorder="little")[: self.vocab]
            scores[bits == 0] = -np.inf
        best = int(scores.argmax())
        return -1 if scores[best] == -np.inf else best
