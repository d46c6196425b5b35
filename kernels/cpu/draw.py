"""Logits to tokens on the CPU, one row at a time: a draw's bits cannot depend on its neighbours.

In: logits `[U, V] float32`, what to draw and what to score. Out: `Samples`, by numpy or the native kernels (`Chooser`).
Greedy rows cost an argmax; a row pays for noise, penalties, truncation and logprobs only when it asks for them. The
distribution is `reference.probabilities`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ramet.kernels.noise import uniforms
from ramet.runtime.batch import F32, I32, U32, Draws, Masks, Samples, Targets

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

_BINS = 1024  # of logits, to find where a share of the mass ends
_NEVER = np.float32(-np.inf)
_SPAN = 256  # tokens whose probabilities are summed first, so that the draw reads the vocabulary once


class Chooser(Protocol):
    """The two passes over the vocabulary."""

    def choose(
        self,
        logits: F32,
        at: I32,
        edited: Mapping[int, F32],
        allowed: Mapping[int, U32],
        draws: Draws,
        noise: F64 | None = None,
    ) -> I32:
        """A token `[R]` of each draw r from row `at[r]` of `logits` `[U, V]`, or from `edited[r]` `[V]` where that is
        given, of those with a bit in `allowed[r]`, if any; -1 where a nan is among them or the largest is not finite.
        `noise` `[R]` is uniform in [0, 1); None: `uniforms` of the draws."""
        ...

    def normalisers(self, logits: F32, at: I32) -> F64:
        """`log(sum(exp(x)))` of the rows `at` of `logits` `[U, V]`; nan where that is no number."""
        ...


class NumpyChooser:
    """A `Chooser` by numpy: the definition, and what serves where there are no native kernels."""

    def choose(
        self,
        logits: F32,
        at: I32,
        edited: Mapping[int, F32],
        allowed: Mapping[int, U32],
        draws: Draws,
        noise: F64 | None = None,
    ) -> I32:
        """See `Chooser`."""
        noise = uniforms(draws.seeds, draws.positions) if noise is None else noise
        tokens = np.zeros(len(at), np.int32)
        for r, row in enumerate(at.tolist()):
            x, words = edited.get(r, logits[row]), allowed.get(r)
            # a boolean index takes up to six times as long as where
            x = x if words is None else np.where(unpacked(words, len(x)), x, _NEVER)
            tokens[r] = _draw(x, r, draws, float(noise[r]))
        return tokens

    def normalisers(self, logits: F32, at: I32) -> F64:
        """See `Chooser`."""
        return np.array([_normaliser(logits[row]) for row in at.tolist()], np.float64)


def draw(
    rows: F32,
    draws: Draws,
    at: I32,
    targets: Targets,
    target_at: I32,
    masks: Masks,
    chooser: Chooser | None = None,
) -> Samples:
    """Draw tokens and score targets, as `Ops.sample` says it, from `rows` `[U, V] float32`, which is only read."""
    chooser = chooser or NumpyChooser()
    edited = _edited(rows, draws, at, masks) if masks.history or draws.bias else {}
    tokens = chooser.choose(rows, at, edited, dict(masks.allowed), draws)
    count = len(draws)
    # a list: for a few draws it is faster than a whole operation of numpy
    if not len(target_at) and max(draws.logprobs.tolist(), default=-1) < 0:  # the usual case
        return Samples(tokens, *_unasked(count), _NO_SCORES, *_NO_TOPS)
    told = (draws.logprobs >= 0) & (tokens >= 0)
    scores = _Scores(rows, np.concatenate((at[told], target_at)), chooser)
    own = np.full(len(draws), np.nan, np.float32)
    for r in np.flatnonzero(told).tolist():
        own[r] = scores.logprob(int(at[r]), int(tokens[r]))
    ids, tops = scores.alternatives(np.where(tokens >= 0, draws.logprobs, 0).astype(np.int32), at)
    scored = [scores.logprob(int(row), int(token)) for row, token in zip(target_at, targets.tokens, strict=True)]
    asked = targets.top if len(targets.top) else np.zeros(len(scored), np.int32)
    return Samples(tokens, own, ids, tops, np.array(scored, np.float32), *scores.alternatives(asked, target_at))


def _nothing(count: int) -> tuple[F32, I32, F32]:
    """Logprobs of `count` draws that ask for none, and their alternatives; nobody can write to them."""
    nothing = np.full(count, np.nan, np.float32), np.zeros((count, 0), np.int32), np.zeros((count, 0), np.float32)
    nothing[0].setflags(write=False)
    return nothing


_NOTHING = tuple(_nothing(count) for count in range(65))  # by count: to make them takes longer than a small draw
_NO_SCORES, _NO_TOPS = np.zeros(0, np.float32), (np.zeros((0, 0), np.int32), np.zeros((0, 0), np.float32))


def _unasked(count: int) -> tuple[F32, I32, F32]:
    return _NOTHING[count] if count < len(_NOTHING) else _nothing(count)


def unpacked(words: U32, vocab: int) -> NDArray[np.bool_]:
    """`[V] bool` of a packed bitmask; bit i of word w is token 32 w + i."""
    return np.unpackbits(words.astype("<u4").view(np.uint8), count=vocab, bitorder="little").view(np.bool_)


def _edited(rows: F32, draws: Draws, at: I32, masks: Masks) -> dict[int, F32]:
    """The logits of the draws that penalties or a bias change."""
    edits = _Edits(draws, masks)
    return {r: edits.apply(r, rows[at[r]]) for r in edits.changed}


class _Edits:
    """Penalties and bias by draw."""

    def __init__(self, draws: Draws, masks: Masks) -> None:
        self._draws = draws
        self._history = {r: (tokens, own) for r, tokens, own in masks.history}
        self._bias: dict[int, list[tuple[I32, F32]]] = {}
        for r, tokens, values in draws.bias:
            self._bias.setdefault(r, []).append((tokens, values))
        self.changed = sorted(self._history.keys() | self._bias.keys())

    def apply(self, r: int, row: F32) -> F32:
        """The logits from which draw r, one of `changed`, is made: a changed copy of `row`."""
        history, bias = self._history.get(r), self._bias.get(r)
        x = row.copy()
        if history is not None:
            self._penalise(r, x, *history)
        for tokens, values in bias or ():
            np.add.at(x, tokens, values)
        return x

    def _penalise(self, r: int, x: F32, tokens: I32, own: int) -> None:
        repetition = self._draws.repetition[r]
        if repetition != 1:
            seen = np.unique(tokens)
            x[seen] = np.where(x[seen] > 0, x[seen] / repetition, x[seen] * repetition)
        if self._draws.frequency[r] != 0 or self._draws.presence[r] != 0:
            ids, counts = np.unique(tokens[len(tokens) - own :], return_counts=True)
            x[ids] -= counts.astype(np.float32) * self._draws.frequency[r] + self._draws.presence[r]


class _Scores:
    """Log-probabilities of the rows `wanted` of the logits `rows`; each row's normaliser is computed once."""

    def __init__(self, rows: F32, wanted: I32, chooser: Chooser) -> None:
        self._rows = rows
        found = np.unique(wanted)
        self._norms = dict(zip(found.tolist(), chooser.normalisers(rows, found).tolist(), strict=True))

    def logprobs(self, row: int, tokens: I64) -> F32:
        """float32 log softmax of row `row` at `tokens`."""
        found: F32 = (self._rows[row, tokens].astype(np.float64) - self._norms[row]).astype(np.float32)
        return found

    def logprob(self, row: int, token: int) -> np.float32:
        """One of them."""
        return np.float32(self.logprobs(row, np.array([token]))[0])

    def alternatives(self, wanted: I32, at: I32) -> tuple[I32, F32]:
        """The `wanted[n]` most likely tokens of row `at[n]` and their logprobs, each `[N, K]`, K the largest wanted;
        -1 and nan beyond a row's own."""
        width = max(0, int(wanted.max())) if len(wanted) else 0
        ids = np.full((len(wanted), width), -1, np.int32)
        values = np.full((len(wanted), width), np.nan, np.float32)
        for n in np.flatnonzero(wanted > 0).tolist():
            row = int(at[n])
            best = top(self._rows[row], min(int(wanted[n]), self._rows.shape[1]))
            ids[n, : len(best)], values[n, : len(best)] = best, self.logprobs(row, best)
        return ids, values


def _normaliser(x: F32) -> float:
    peak = x.max()
    return float(peak) + math.log(float(np.exp(x - peak).sum(dtype=np.float64))) if np.isfinite(peak) else math.nan


def _draw(x: F32, r: int, draws: Draws, u: float) -> int:
    best = int(x.argmax())  # the first of equals, and of nan if there is one
    if not np.isfinite(x[best]):  # nan, +inf, or every token forbidden
        return -1
    temperature, k, p = float(draws.temperature[r]), int(draws.top_k[r]), float(draws.top_p[r])
    if temperature == 0 or k == 1:
        return best
    return choose(x, x[best], temperature, k, p, float(draws.min_p[r]), u)


def choose(x: F32, peak: np.float32, temperature: float, top_k: int, top_p: float, min_p: float, u: float) -> int:
    """The first token, in order of id, whose cumulated probability exceeds `u`; `peak` is the maximum of `x`."""
    if not 0 < top_k < len(x) and top_p >= 1:
        with np.errstate(over="ignore"):
            y: F32 = (x - peak) / np.float32(temperature) if temperature != 1 else x - peak
        weights = np.exp(y, out=y)
        if min_p > 0:
            weights[weights < min_p] = 0
        return inverse_cdf(weights, u)
    ids = kept(x, peak, temperature, top_k, top_p, min_p)
    total = _weights(x[ids], peak, temperature).cumsum()
    return int(ids[np.searchsorted(total, u * total[-1], side="right")])


def inverse_cdf(weights: F32, u: float) -> int:
    """The index where the running sum of `weights` first exceeds `u` times their sum: spans first, then inside one."""
    spans = np.add.reduceat(weights, np.arange(0, len(weights), _SPAN), dtype=np.float64).cumsum()
    aim = u * spans[-1]
    span = int(np.searchsorted(spans, aim, side="right"))
    inside = weights[span * _SPAN : (span + 1) * _SPAN].cumsum(dtype=np.float64)
    found = int(np.searchsorted(inside, aim - (spans[span - 1] if span else 0.0), side="right"))
    if found == len(inside):  # the span's two sums round differently: its last token with a positive weight
        found = int(np.searchsorted(inside, inside[-1], side="left"))
    return span * _SPAN + found


def _weights(x: F32, peak: np.float32, temperature: float) -> F64:
    with np.errstate(over="ignore"):
        return np.exp((x.astype(np.float64) - float(peak)) / temperature)


def kept(x: F32, peak: np.float32, temperature: float, top_k: int, top_p: float, min_p: float) -> I64:
    """Ids, ascending, of the tokens that top_k, top_p and min_p leave; at least the first of the most likely."""
    if 0 < top_k < len(x):
        ids = top(x, top_k)
        weights = _weights(x[ids], peak, temperature)
        if top_p < 1:
            stays = weights.cumsum() - weights < top_p * weights.sum()
            stays[0] = True
            ids, weights = ids[stays], weights[stays]
    else:
        ids = nucleus(x, peak, temperature, top_p)
        weights = _weights(x[ids], peak, temperature)
    found: I64 = np.sort(ids[weights >= min_p * weights.max()])
    return found


def nucleus(x: F32, peak: np.float32, temperature: float, top_p: float) -> I64:
    """Ids of the smallest most likely set with the share `top_p` of the mass.

    Tokens are put into bins by logit; bins above the one where the mass is reached belong to the set, bins below do
    not, and only that bin is sorted.
    """
    # a token below the lowest bin is outside: all of these together weigh less than half of 1 - top_p
    span = temperature * math.log(2 * len(x) / max(1 - top_p, 1e-12))
    ids = np.flatnonzero(x >= float(peak) - span)
    aim = top_p * float(_weights(x, peak, temperature).sum())
    below = float(peak) - x[ids].astype(np.float64)
    weights = np.exp(below / -temperature)
    bins = np.minimum(below * (_BINS / span), _BINS - 1).astype(np.int64)
    mass = np.bincount(bins, weights, _BINS).cumsum()
    edge = int(np.searchsorted(mass, aim, side="left"))
    inside = np.flatnonzero(bins == edge)
    inside = inside[np.argsort(below[inside], kind="stable")]  # equals stay in order of id
    before = weights[inside].cumsum() - weights[inside] + (mass[edge - 1] if edge else 0.0)
    found: I64 = np.concatenate((ids[bins < edge], ids[inside[before < aim]]))
    return found


def top(x: F32, k: int) -> I64:
    """Ids of the k largest of `x`, largest first, of equals the lower id first.

    The k-th largest maximum of short spans is at most the k-th largest element, so only what reaches it is sorted.
    """
    starts = np.arange(0, len(x), 64)
    if 2 * k <= len(starts):
        spans = np.maximum.reduceat(x, starts)
        least = np.partition(spans, len(spans) - k)[len(spans) - k]
        ids = np.flatnonzero(x >= least)
    else:
        ids = np.arange(len(x))
    found: I64 = ids[np.argsort(-x[ids], kind="stable")][:k]
    return found
