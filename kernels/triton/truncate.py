"""top-k, top-p and min-p without sorting. In: a row's logits, maxima of its spans, its maximum and mass. Out: a short
list that holds every token that may be kept, then the exact kept set as a lowest (logit, token) pair, then the draw.

The list: the k-th largest span maximum is at most the k-th largest logit; tokens lighter than (1 - p) Z / V weigh less
than 1 - p of the mass Z together, and a shorter list will do if its mass shows that it holds p Z; min-p is a threshold
by itself. The pivot is then bracketed by eight trial values a pass (after the pivot search of FlashInfer's sampling, Ye
et al. 2025, on the floats' ordered bits instead of their values, so that it ends, ties included): at most 11 passes
over the list, about 5 in practice.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ramet.kernels.triton.adjust import read
from ramet.kernels.triton.noise import gumbel2

LOWEST: tl.constexpr = tl.constexpr(-2139095041)  # `ordered(-inf)`
ANY: tl.constexpr = tl.constexpr(0x7FFFFFFF)
TRIALS: tl.constexpr = tl.constexpr(8)
_SLACK: tl.constexpr = tl.constexpr(64)


@triton.jit
def ordered(x: tl.tensor) -> tl.tensor:
    """int32 keys in the order of float32 `x` without nan; the two zeros are equal."""
    bits = tl.where(x == 0, 0.0, x).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def unordered(key: tl.tensor) -> tl.tensor:
    """The float32 of an ordered key."""
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _kth(maxima: tl.tensor, peak: tl.tensor, k: tl.tensor) -> tl.tensor:
    """A value that at least k of `maxima` reach, and not many more; -inf if there is none."""
    keys = ordered(maxima)
    low = tl.full((), LOWEST, tl.int64)
    high = ordered(peak).to(tl.int64) + 1
    reached = tl.full((), ANY, tl.int32)
    while (high - low > 1) & (reached > k + _SLACK):
        middle = (low + high) >> 1
        count = tl.sum((keys >= middle.to(tl.int32)).to(tl.int32), 0)
        if count >= k:
            low = middle
            reached = count
        else:
            high = middle
    return unordered(low.to(tl.int32))


@triton.jit
def _floor(
    maxima: tl.tensor,
    peak: tl.tensor,
    mass: tl.tensor,
    scale: tl.tensor,
    top_k: tl.tensor,
    top_p: tl.tensor,
    min_p: tl.tensor,
    vocab: tl.tensor,
) -> tl.tensor:
    """A logit below which no token is kept, and that all tokens reach whose mass top-p needs. mass: the row's sum of
    2 ** ((x - peak) * scale)."""
    floor = tl.full((), -float("inf"), tl.float32)
    if top_k > 0:
        floor = _kth(maxima, peak, top_k)
    # top-p of top-k is a share of the mass of k tokens: all of them must be listed
    if (top_p < 1) & (top_k == 0):
        # half of the bound, for the rounding of the sums
        floor = tl.maximum(floor, peak + tl.log2((1 - top_p) * mass / (2.0 * vocab)) / scale)
    if (min_p > 0) & ((top_p >= 1) | (top_k == 0)):
        floor = tl.maximum(floor, peak + (tl.log2(min_p) - 0.015625) / scale)
    return floor - tl.maximum(tl.abs(peak), tl.abs(floor)) * 2.384185791015625e-07  # two roundings lower


@triton.jit
def _shortlist(
    row: tl.tensor,
    masks: tl.tensor,
    words: tl.tensor,
    mask: tl.tensor,
    vocab: tl.tensor,
    maxima: tl.tensor,
    peak: tl.tensor,
    scale: tl.tensor,
    floor: tl.tensor,
    spans: tl.tensor,
    short_x: tl.tensor,
    short_at: tl.tensor,
    SPANS: tl.constexpr,
    SPAN: tl.constexpr,
    CAPACITY: tl.constexpr,
    TILE: tl.constexpr,
    MASKED: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Write the finite logits of at least `floor` to `short_x`, `short_at` in order of token; only spans whose maximum
    reaches it are read. Returns how many there are, -1 for more than CAPACITY, and their mass. `spans`: scratch."""
    index = tl.arange(0, SPANS)
    reach = (maxima >= floor) & (maxima > -float("inf"))
    place = tl.cumsum(reach.to(tl.int32), 0) - 1
    tl.debug_barrier()  # an earlier list may still be read
    tl.store(spans + place, index, reach)
    listed = tl.sum(reach.to(tl.int32), 0)
    tl.debug_barrier()  # the list is read by other threads than those that wrote it
    count = tl.full((), 0, tl.int32)
    mass = tl.full((), 0.0, tl.float32)
    first = tl.full((), 0, tl.int32)
    while (first < listed) & (count <= CAPACITY):
        which = first + tl.arange(0, TILE)
        span = tl.load(spans + which, which < listed, other=0)
        at = tl.reshape(span[:, None] * SPAN + tl.arange(0, SPAN)[None, :], [TILE * SPAN])
        present = tl.reshape((which < listed)[:, None] & (tl.arange(0, SPAN) >= 0)[None, :], [TILE * SPAN])
        x = read(row, masks, words, mask, at, tl.where(present, vocab, 0), MASKED)
        keep = (x >= floor) & (x > -float("inf"))
        to = count + tl.cumsum(keep.to(tl.int32), 0) - 1
        tl.store(short_x + to, x, keep & (to < CAPACITY))
        tl.store(short_at + to, at, keep & (to < CAPACITY))
        count += tl.sum(keep.to(tl.int32), 0)
        mass += tl.sum(tl.where(keep, tl.exp2((x - peak) * scale), 0.0), 0)
        first += TILE
    return tl.where(count > CAPACITY, -1, count), mass


@triton.jit
def list_kept(
    row: tl.tensor,
    masks: tl.tensor,
    words: tl.tensor,
    mask: tl.tensor,
    vocab: tl.tensor,
    maxima: tl.tensor,
    peak: tl.tensor,
    mass: tl.tensor,
    scale: tl.tensor,
    top_k: tl.tensor,
    top_p: tl.tensor,
    min_p: tl.tensor,
    number: tl.tensor,
    spans: tl.tensor,
    short_x: tl.tensor,
    short_at: tl.tensor,
    found: tl.tensor,
    SPANS: tl.constexpr,
    SPAN: tl.constexpr,
    CAPACITY: tl.constexpr,
    TILE: tl.constexpr,
    MASKED: tl.constexpr,
) -> None:
    """Write a list that holds every token that may be kept; and `found` [4] int32: its length (-1: more than CAPACITY),
    the key that all of them reach, and by their bits `peak` and `mass`. `maxima` [SPANS]: those of the row's `number`
    spans; `spans`: scratch."""
    bound = _floor(maxima, peak, mass, scale, top_k, top_p, min_p, vocab)
    # top-p alone: lists of some 2 and 11 thousandths of the vocabulary are tried before the one of the bound
    target = tl.where((top_p < 1) & (top_k == 0), mass * top_p * 1.00001, 0.0)
    k = tl.maximum(number // 8, 1)
    count = tl.full((), 0, tl.int32)
    floor = bound
    more = count == 0
    while more:
        guess = _kth(maxima, peak, k)
        floor = tl.where(target > 0, tl.maximum(bound, guess), bound)
        count, held = _shortlist(
            *(row, masks, words, mask, vocab, maxima, peak, scale, floor, spans, short_x, short_at),
            *(SPANS, SPAN, CAPACITY, TILE, MASKED),
        )
        more = (held < target) & (count >= 0) & (floor > bound)
        k *= 4
    lowest = tl.where(count < 0, bound, floor)  # a row that is walked is not cut by a guess
    tl.store(found, count)
    tl.store(found + 1, tl.maximum(ordered(lowest), LOWEST + 1))
    tl.store(found + 2, peak.to(tl.int32, bitcast=True))
    tl.store(found + 3, mass.to(tl.int32, bitcast=True))


@triton.jit
def _measure(
    row: tl.tensor,
    masks: tl.tensor,
    words: tl.tensor,
    mask: tl.tensor,
    size: tl.tensor,
    peak: tl.tensor,
    scale: tl.tensor,
    low: tl.tensor,
    cut: tl.tensor,
    trials: tl.tensor,
    BLOCK: tl.constexpr,
    MASKED: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """How many kept tokens reach each of the `trials` [8] int32 keys, and their mass: int32, float64. Kept: a key above
    `low`, or equal and at place `cut` at most."""
    # trials on the first axis: a thread then holds all of them for its logits
    counts = tl.zeros([TRIALS, BLOCK], tl.int32)
    masses = tl.zeros([TRIALS, BLOCK], tl.float32)
    for begin in tl.range(0, size, BLOCK, num_stages=3):
        at = begin + tl.arange(0, BLOCK)
        x = read(row, masks, words, mask, at, size, MASKED)
        key = ordered(x)
        kept = (key > low) | ((key == low) & (at <= cut))
        reach = tl.where(kept, key, LOWEST)[None, :] >= trials[:, None]
        counts += reach.to(tl.int32)
        masses += tl.where(reach, tl.exp2((x - peak) * scale)[None, :], 0.0)
    return tl.sum(counts, 1), tl.sum(masses.to(tl.float64), 1)


@triton.jit
def _place(
    row: tl.tensor,
    masks: tl.tensor,
    words: tl.tensor,
    mask: tl.tensor,
    size: tl.tensor,
    key: tl.tensor,
    need: tl.tensor,
    BLOCK: tl.constexpr,
    MASKED: tl.constexpr,
) -> tl.tensor:
    """The place of the need-th token, in order of token, whose logit has exactly this key."""
    place = tl.full((), 0, tl.int32)
    seen = tl.full((), 0, tl.int32)
    begin = tl.full((), 0, tl.int32)
    while (begin < size) & (seen < need):
        at = begin + tl.arange(0, BLOCK)
        tie = (ordered(read(row, masks, words, mask, at, size, MASKED)) == key).to(tl.int32)
        rank = seen + tl.cumsum(tie, 0)
        place = tl.maximum(place, tl.max(tl.where((tie > 0) & (rank <= need), at, 0), 0))
        seen += tl.sum(tie, 0)
        begin += BLOCK
    return place


@triton.jit
def pivot(
    row: tl.tensor,
    masks: tl.tensor,
    words: tl.tensor,
    mask: tl.tensor,
    size: tl.tensor,
    peak: tl.tensor,
    scale: tl.tensor,
    low: tl.tensor,
    cut: tl.tensor,
    target: tl.tensor,
    BY_MASS: tl.constexpr,
    BLOCK: tl.constexpr,
    MASKED: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """The smallest set of the most likely kept tokens whose number (or mass) is at least `target` float64, of equals
    the first: its (low, cut) and its mass. All kept tokens when they do not reach the target.

    Invariant: the tokens with keys from `lo` on reach the target (or lo is where the search began), those from `hi` on
    do not. It ends when one token or one value is left between them.
    """
    lo = low.to(tl.int64)
    hi = ordered(peak).to(tl.int64) + 1
    reached = tl.full((), ANY, tl.int32)
    missed = tl.full((), 0, tl.int32)
    mass = tl.full((), 0.0, tl.float64)
    above = tl.full((), 0.0, tl.float64)
    lane = tl.arange(0, TRIALS)
    go = hi > lo
    while go:
        step = (hi - lo + TRIALS - 1) // TRIALS
        trials = (lo + step * lane).to(tl.int32)
        counts, masses = _measure(row, masks, words, mask, size, peak, scale, low, cut, trials, BLOCK, MASKED)
        enough = (masses if BY_MASS else counts.to(tl.float64)) >= target
        last = tl.max(tl.where(enough, lane, 0), 0)
        reached = tl.sum(tl.where(lane == last, counts, 0), 0)
        mass = tl.sum(tl.where(lane == last, masses, 0.0), 0)
        lo += step * last
        if (last < TRIALS - 1) & (lo + step < hi):
            hi = lo + step
            missed = tl.sum(tl.where(lane == last + 1, counts, 0), 0)
            above = tl.sum(tl.where(lane == last + 1, masses, 0.0), 0)
        go = (hi - lo > 1) & (reached - missed > 1)
    found = lo.to(tl.int32)
    place = tl.where(found == low, cut, ANY)
    if reached - missed > 1:  # equal logits: how many of them belong to the set
        weight = tl.exp2((unordered(found) - peak) * scale).to(tl.float64)
        ties = (target - above) / weight if BY_MASS else target - missed
        need = tl.ceil(tl.minimum(tl.maximum(ties, 1.0), (reached - missed).to(tl.float64))).to(tl.int32)
        place = tl.minimum(place, _place(row, masks, words, mask, size, found, need, BLOCK, MASKED))
        mass = above + need * weight
    return found, place, mass


@triton.jit
def draw_kept(
    row: tl.tensor,
    masks: tl.tensor,
    words: tl.tensor,
    mask: tl.tensor,
    size: tl.tensor,
    ids: tl.tensor,
    listed: tl.tensor,
    peak: tl.tensor,
    scale: tl.tensor,
    low: tl.tensor,
    cut: tl.tensor,
    min_p: tl.tensor,
    key_low: tl.tensor,
    key_high: tl.tensor,
    BLOCK: tl.constexpr,
    MASKED: tl.constexpr,
) -> tl.tensor:
    """The kept token with the largest score; ids: tokens by place, where the row is a `listed` one."""
    best = tl.full([BLOCK], -float("inf"), tl.float32)
    chosen = tl.full([BLOCK], ANY, tl.int32)
    for begin in tl.range(0, size, BLOCK, num_stages=3):
        at = begin + tl.arange(0, BLOCK)
        x = read(row, masks, words, mask, at, size, MASKED)
        key = ordered(x)
        y = (x - peak) * scale
        kept = ((key > low) | ((key == low) & (at <= cut))) & (tl.exp2(y) >= min_p)
        token = at
        if listed:
            token = tl.load(ids + at, at < size, other=0)
        score = tl.where(kept, y + gumbel2(key_low, key_high, token), -float("inf"))
        chosen = tl.where(score > best, token, chosen)
        best = tl.maximum(score, best)
    return tl.min(tl.where(best == tl.max(best, 0), chosen, ANY), 0)
