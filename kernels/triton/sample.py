"""Logits to tokens on the GPU. In: logits `[U, V] float32` and packed draws. Out: tokens `[R] int64`, and on request
log-probabilities. Nothing waits for the host, and no shape depends on data: all of it fits into a captured graph.

A token is the largest of x / T + Gumbel noise (Yellott 1977; noise by (seed, position, token)) over the tokens kept by
top-k, top-p and min-p as `reference.probabilities` defines them. Launches, and bytes by row of V logits:
  adjust    rows with penalties or bias, when the room has any: 8 V
  scan      blocks of 4096 logits: their maximum and best token; 4 V (V = 128k, 256 rows: 134 MB, 40 us at 3.35 TB/s).
            A row that is cut gives span maxima and mass instead, and draws no noise yet
  settle    one program per row: the token, or the short list of a row that is cut: V / 16 + the spans that matter
  choose    rows that are cut: pivot search and draw in the list (32 KB); a row whose list would be longer than 4096 is
            walked instead, 4 V for each pass, some 8 to 15 of them
Blocks are fixed, so a row's bits depend neither on the number of rows nor on its neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from ramet.kernels.ops import Drawn
from ramet.kernels.triton import draws as fields
from ramet.kernels.triton import logprobs
from ramet.kernels.triton.adjust import AT, MASK, adjust, allowed, integer, real, row_of
from ramet.kernels.triton.aot import Variant
from ramet.kernels.triton.draws import DrawRoom, DrawView, pack_draws, upload, view_draws
from ramet.kernels.triton.noise import gumbel2
from ramet.kernels.triton.truncate import ANY, draw_kept, list_kept, pivot
from ramet.runtime.batch import I32, Draws, Masks, Targets

SCALE: tl.constexpr = tl.constexpr(fields.SCALE)
TOP_K: tl.constexpr = tl.constexpr(fields.TOP_K)
TOP_P: tl.constexpr = tl.constexpr(fields.TOP_P)
MIN_P: tl.constexpr = tl.constexpr(fields.MIN_P)
CUT: tl.constexpr = tl.constexpr(fields.CUT)
KEY_LOW: tl.constexpr = tl.constexpr(fields.KEY_LOW)
KEY_HIGH: tl.constexpr = tl.constexpr(fields.KEY_HIGH)

_BLOCK = 4096  # logits of one program of `scan`
_SPANS = 2048  # maxima that a row may have; a span is the smallest power of two from 64 on that keeps to it
_CAPACITY = 4096  # tokens of a short list
_TILE = 2048  # logits of spans that are read at a time
_SEARCH = 1024  # logits of one step of a search


@dataclass(frozen=True, slots=True)
class DrawScratch:
    """Buffers of one `draw`; every element that is read was written by an earlier launch of the same call.

    copies `[copies, V] float32`; peaks, values `[R, blocks] float32`, ids `[R, blocks] int32`; for rows that are cut
    maxima `[R, spans] float32`, spans `[R, spans] int32`, short_x `[R, 4096] float32`, short_at `[R, 4096] int32`,
    found `[R, 4] int32`; tokens `[R] int64`.
    """

    copies: torch.Tensor
    peaks: torch.Tensor
    values: torch.Tensor
    ids: torch.Tensor
    maxima: torch.Tensor
    spans: torch.Tensor
    short_x: torch.Tensor
    short_at: torch.Tensor
    found: torch.Tensor
    tokens: torch.Tensor


def _span(vocab: int) -> int:
    """Logits of a span, of which one maximum is kept."""
    return max(64, int(triton.next_power_of_2(triton.cdiv(vocab, _SPANS))))


def draw_scratch(room: DrawRoom, vocab: int, device: torch.device) -> DrawScratch:
    """Fresh buffers for draws of this room."""
    rows, cut = room.draws, room.draws if room.cut else 0
    blocks, spans = triton.cdiv(vocab, _BLOCK), triton.cdiv(vocab, _span(vocab))

    # uninitialised: see DrawScratch
    def floats(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.float32, device=device)

    def integers(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.int32, device=device)

    return DrawScratch(
        copies=floats(room.copies, vocab),
        peaks=floats(rows, blocks),
        values=floats(rows, blocks),
        ids=integers(rows, blocks),
        maxima=floats(cut, spans),
        spans=integers(cut, spans),
        short_x=floats(cut, _CAPACITY),
        short_at=integers(cut, _CAPACITY),
        found=integers(rows, 4),
        tokens=torch.empty(rows, dtype=torch.int64, device=device),  # uninitialised, like the others
    )


def scratch_bytes(room: DrawRoom, vocab: int) -> int:
    """Device memory of `draw_scratch`, within a few kilobytes."""
    rows, cut = room.draws, room.draws if room.cut else 0
    blocks, spans = triton.cdiv(vocab, _BLOCK), triton.cdiv(vocab, _span(vocab))
    return int(4 * (room.copies * vocab + rows * (3 * blocks + 6) + cut * 2 * (spans + _CAPACITY)))


@triton.jit(do_not_specialize=["columns", "words"])
def scan(
    logits: tl.tensor,
    stride: tl.tensor,
    copies: tl.tensor,
    vocab: tl.tensor,
    table: tl.tensor,
    columns: tl.tensor,
    masks: tl.tensor,
    words: tl.tensor,
    peaks: tl.tensor,
    values: tl.tensor,
    ids: tl.tensor,
    maxima: tl.tensor,
    spans: tl.tensor,
    SPANS: tl.constexpr,
    SPAN: tl.constexpr,
    MASKED: tl.constexpr,
) -> None:
    """Program (b, r), block b of SPANS * SPAN logits of draw r: `peaks` (+inf for nan), and either the best score and
    its token (`values`, `ids`; scores are relative to the peak), or, for a row that is cut, its mass relative to the
    peak (`values`) and the maxima of its spans. Floor: 4 V bytes a row."""
    block, draw = tl.program_id(0), tl.program_id(1)
    if integer(table, columns, draw, AT) < 0:
        return
    row = row_of(logits, stride, copies, vocab, table, columns, draw)
    span = block * SPANS + tl.arange(0, SPANS)
    at = span[:, None] * SPAN + tl.arange(0, SPAN)[None, :]
    x = tl.load(row + at, at < vocab, other=-float("inf"))
    if MASKED:
        x = tl.where(allowed(masks, words, integer(table, columns, draw, MASK), span, SPANS, SPAN), x, -float("inf"))
    x = tl.where(x == x, x, float("inf"))
    highest = tl.max(x, 1)
    peak = tl.max(highest, 0)
    base = tl.where(peak == -float("inf"), 0.0, peak)
    scale = real(table, columns, draw, SCALE)
    out = draw * tl.num_programs(0) + block
    tl.store(peaks + out, peak)
    if integer(table, columns, draw, CUT) != 0:
        tl.store(maxima + draw * spans + span, highest, span < spans)
        tl.store(values + out, tl.sum(tl.sum(tl.exp2((x - base) * scale), 1), 0))
    else:
        score = x
        if scale > 0:
            low, high = integer(table, columns, draw, KEY_LOW), integer(table, columns, draw, KEY_HIGH)
            score = (x - base) * scale + gumbel2(low, high, at)
        best = tl.max(tl.max(score, 1), 0)
        tl.store(values + out, best)
        tl.store(ids + out, tl.min(tl.min(tl.where(score == best, at, ANY), 1), 0))


@triton.jit(do_not_specialize=["columns", "words", "blocks"])
def settle(
    logits: tl.tensor,
    stride: tl.tensor,
    copies: tl.tensor,
    vocab: tl.tensor,
    table: tl.tensor,
    columns: tl.tensor,
    masks: tl.tensor,
    words: tl.tensor,
    peaks: tl.tensor,
    values: tl.tensor,
    ids: tl.tensor,
    maxima: tl.tensor,
    listed: tl.tensor,
    short_x: tl.tensor,
    short_at: tl.tensor,
    found: tl.tensor,
    tokens: tl.tensor,
    blocks: tl.tensor,
    spans: tl.tensor,
    BLOCKS: tl.constexpr,
    SPANS: tl.constexpr,
    SPAN: tl.constexpr,
    CAPACITY: tl.constexpr,
    TILE: tl.constexpr,
    CUTS: tl.constexpr,
    MASKED: tl.constexpr,
) -> None:
    """Program r: the token of draw r; or, for a row that is cut, its short list and `found`: the list's length (-1: too
    long, 0: nothing to choose), the lowest key, the peak and the mass by their bits. -1 for a row that cannot be drawn
    from. Floor: a launch; for a row that is cut, the spans that matter and the list, some 50 KB."""
    draw = tl.program_id(0)
    block = tl.arange(0, BLOCKS)
    real_draw = integer(table, columns, draw, AT) >= 0
    here = (block < blocks) & real_draw
    peak = tl.load(peaks + draw * blocks + block, here, other=-float("inf"))
    value = tl.load(values + draw * blocks + block, here, other=-float("inf"))
    top = tl.max(peak, 0)
    possible = (top > -float("inf")) & (top < float("inf"))
    tl.store(tokens + draw, tl.full((), -1, tl.int64))
    tl.store(found + 4 * draw, 0)
    if possible:
        scale = real(table, columns, draw, SCALE)
        if integer(table, columns, draw, CUT) == 0:
            # an explicit fma: left to the compiler, the rounding would depend on CUTS, that is on other draws
            score = tl.where(scale > 0, tl.fma(peak - top, tl.full(peak.shape, scale, tl.float32), value), value)
            first = tl.min(tl.where(score == tl.max(score, 0), block, BLOCKS - 1), 0)
            tl.store(tokens + draw, tl.load(ids + draw * blocks + first).to(tl.int64))
        elif CUTS:
            mass = tl.sum(tl.where(here, value, 0.0) * tl.exp2((peak - top) * scale), 0)
            index = tl.arange(0, SPANS)
            highest = tl.load(maxima + draw * spans + index, index < spans, other=-float("inf"))
            row = row_of(logits, stride, copies, vocab, table, columns, draw)
            list_kept(
                *(row, masks, words, integer(table, columns, draw, MASK), vocab, highest, top, mass, scale),
                *(integer(table, columns, draw, TOP_K), real(table, columns, draw, TOP_P)),
                *(real(table, columns, draw, MIN_P), spans, listed + draw * spans),
                *(short_x + draw * CAPACITY, short_at + draw * CAPACITY, found + 4 * draw),
                *(SPANS, SPAN, CAPACITY, TILE, MASKED),
            )


@triton.jit(do_not_specialize=["columns", "words"])
def choose(
    logits: tl.tensor,
    stride: tl.tensor,
    copies: tl.tensor,
    vocab: tl.tensor,
    table: tl.tensor,
    columns: tl.tensor,
    masks: tl.tensor,
    words: tl.tensor,
    short_x: tl.tensor,
    short_at: tl.tensor,
    found: tl.tensor,
    tokens: tl.tensor,
    CAPACITY: tl.constexpr,
    BLOCK: tl.constexpr,
    MASKED: tl.constexpr,
) -> None:
    """Program r: the token of draw r if its row is cut, from its short list or, where that is too long, the row. Floor:
    the list once, 32 KB a row, which comes from L2."""
    draw = tl.program_id(0)
    count = tl.load(found + 4 * draw)
    if count == 0:
        return
    listed = count > 0
    row = row_of(logits, stride, copies, vocab, table, columns, draw)
    row = tl.where(listed, short_x + draw * CAPACITY, row)
    size = tl.where(listed, count, vocab)
    mask = tl.where(listed, -1, integer(table, columns, draw, MASK))
    low = tl.load(found + 4 * draw + 1)
    cut = tl.full((), ANY, tl.int32)
    peak = tl.load(found + 4 * draw + 2).to(tl.float32, bitcast=True)
    mass = tl.load(found + 4 * draw + 3).to(tl.float32, bitcast=True).to(tl.float64)
    scale, top_p = real(table, columns, draw, SCALE), real(table, columns, draw, TOP_P)
    top_k = integer(table, columns, draw, TOP_K)
    if top_k > 0:
        want = top_k.to(tl.float64)
        low, cut, mass = pivot(row, masks, words, mask, size, peak, scale, low, cut, want, False, BLOCK, MASKED)
    if top_p < 1:
        want = mass * top_p.to(tl.float64)
        low, cut, mass = pivot(row, masks, words, mask, size, peak, scale, low, cut, want, True, BLOCK, MASKED)
    min_p = real(table, columns, draw, MIN_P)
    key_low, key_high = integer(table, columns, draw, KEY_LOW), integer(table, columns, draw, KEY_HIGH)
    ids = short_at + draw * CAPACITY
    token = draw_kept(
        row, masks, words, mask, size, ids, listed, peak, scale, low, cut, min_p, key_low, key_high, BLOCK, MASKED
    )
    tl.store(tokens + draw, token.to(tl.int64))


def draw(logits: torch.Tensor, view: DrawView, scratch: DrawScratch) -> torch.Tensor:
    """Draw a token for each column of `view` from `logits` `[U, V] float32`, rows contiguous. Returns `scratch.tokens`
    `[room.draws] int64`: -1 where no token is allowed, where the logits are not finite, and in padding.

    Raises nothing and waits for nothing: may be captured. `logits` is never changed.
    """
    room, vocab = view.room, logits.shape[1]
    assert logits.dtype == torch.float32 and logits.stride(1) == 1, "logits are rows of float32"
    if room.draws == 0:
        return scratch.tokens
    adjust(logits, view, scratch.copies)
    span = _span(vocab)
    blocks, spans = triton.cdiv(vocab, _BLOCK), triton.cdiv(vocab, span)
    source = (
        logits,
        logits.stride(0),
        scratch.copies,
        vocab,
        view.table,
        room.columns,
        view.masks,
        view.masks.shape[1],
    )
    s, masked = scratch, room.masks > 0
    scan[(blocks, room.draws)](
        *source,
        s.peaks,
        s.values,
        s.ids,
        s.maxima,
        spans,
        SPANS=_BLOCK // span,
        SPAN=span,
        MASKED=masked,
        num_warps=8,
    )
    settle[(room.draws,)](
        *source,
        *(s.peaks, s.values, s.ids, s.maxima, s.spans, s.short_x, s.short_at, s.found, s.tokens, blocks, spans),
        BLOCKS=triton.next_power_of_2(blocks),
        SPANS=triton.next_power_of_2(spans),
        SPAN=span,
        CAPACITY=_CAPACITY,
        TILE=_TILE // span,
        CUTS=room.cut,
        MASKED=masked,
        num_warps=16,
    )
    if room.cut:
        choose[(room.draws,)](
            *(*source, s.short_x, s.short_at, s.found, s.tokens),
            CAPACITY=_CAPACITY,
            BLOCK=_SEARCH,
            MASKED=masked,
            num_warps=16,
        )
    return s.tokens


def sample(logits: torch.Tensor, draws: Draws, at: I32, targets: Targets, target_at: I32, masks: Masks) -> Drawn:
    """See `Ops.sample`; drawn with the noise of `gumbels(seed, position)`, so the tokens are others than the CPU's."""
    packed = pack_draws(draws, at, masks, logits.shape[1])
    assert packed is not None, "draws fit their own room"
    words = upload(packed.words, logits.device)
    scratch = draw_scratch(packed.room, logits.shape[1], logits.device)
    tokens = draw(logits, view_draws(words, packed.room), scratch)
    return logprobs.score(logits, draws.logprobs, at, tokens, targets.tokens, target_at, targets.top)


def variants() -> tuple[Variant, ...]:
    """Vocabularies of Llama 3 (128,256), Qwen3 (151,936) and Gemma 3 (262,208)."""
    source = {"logits": "*fp32", "stride": "i32", "copies": "*fp32", "vocab": "i32", "table": "*i32", "columns": "i32"}
    source |= {"masks": "*i32", "words": "i32"}
    stats = {"peaks": "*fp32", "values": "*fp32", "ids": "*i32", "maxima": "*fp32"}
    lists = {"short_x": "*fp32", "short_at": "*i32", "found": "*i32", "tokens": "*i64"}
    plain = {"columns", "words", "blocks", "spans"}

    def variant(name: str, kernel: Any, kinds: dict[str, str], warps: int, **constants: int) -> Variant:
        aligned = tuple(argument for argument in kinds if argument not in plain)
        return Variant(name, kernel, kinds | dict.fromkeys(constants, "constexpr"), dict(constants), warps, 2, aligned)

    found = []
    for masked in (False, True):
        suffix, sizes = "/masked" if masked else "", {"CAPACITY": _CAPACITY, "BLOCK": _SEARCH, "MASKED": masked}
        found.append(variant(f"sample/choose{suffix}", choose, source | lists, 16, **sizes))
    kinds = source | stats | {"listed": "*i32"} | lists | {"blocks": "i32", "spans": "i32"}
    for vocab in (128256, 151936, 262208):
        span = _span(vocab)
        blocks, spans = triton.cdiv(vocab, _BLOCK), triton.cdiv(vocab, span)
        for masked in (False, True):
            suffix = f"{'/masked' if masked else ''}/v{vocab}"
            tile = {"SPANS": _BLOCK // span, "SPAN": span, "MASKED": masked}
            found.append(variant(f"sample/scan{suffix}", scan, source | stats | {"spans": "i32"}, 8, **tile))
            sizes = {"BLOCKS": triton.next_power_of_2(blocks), "SPANS": triton.next_power_of_2(spans), "SPAN": span}
            sizes |= {"CAPACITY": _CAPACITY, "TILE": _TILE // span, "CUTS": True, "MASKED": masked}
            found.append(variant(f"sample/settle{suffix}", settle, kinds, 16, **sizes))
    return tuple(found)
