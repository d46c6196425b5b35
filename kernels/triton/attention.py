"""Attention over slots by work items. In: queries, a layer's cache and the work lists of the plan. Out: one row per new
token, or partial rows for `merge`.

An item is a few query tokens times a run of KV positions; decode, long chunks, tries and shared prefixes are all lists
of items (`work.py`), and since the lists and their lengths are read on the device, one launch serves any batch.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from ramet.kernels.ops import Layout
from ramet.kernels.triton.aot import Variant
from ramet.kernels.triton.merge import merge_partials
from ramet.kernels.triton.plan import TALL_M, TritonPlan
from ramet.kernels.triton.work import NARROW_M, WIDE_M

_PER_SM = 16  # programs per multiprocessor, as many as the work lists aim at; further units are walked in a loop
_ON_CPU = 3  # programs in the interpreter: few, so that the loop over items is exercised
_LISTS = ["kv", "item_rows", "items", "counts", "limit"]  # views of one int32 tensor: their alignment means nothing
_SIZES = ["window", "head_rows", "value_rows", "padded"]


@triton.jit
def _tile(
    query: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    slots: tl.tensor,
    position: tl.tensor,
    bound: tl.tensor,
    limit: tl.tensor,
    window: tl.tensor,
    scale: tl.tensor,
    peak: tl.tensor,
    total: tl.tensor,
    acc: tl.tensor,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    MASKED: tl.constexpr,
    WINDOWED: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """One step of the online softmax (Milakov and Gimelshein 2018; Dao et al. 2022): the tile's `slots` [N] stand at
    `position` [N]. Every product-and-sum is an explicit fma, so that a row that sees the whole tile gets the same bits
    with and without `MASKED`."""
    d = tl.arange(0, BLOCK_D)
    at = slots.to(tl.int64)[:, None] * DIM + d[None, :]
    if DIM == BLOCK_D:
        key = tl.load(keys + at)
        value = tl.load(values + at)
    else:
        key = tl.load(keys + at, d[None, :] < DIM, 0.0)
        value = tl.load(values + at, d[None, :] < DIM, 0.0)
    score = tl.dot(query, tl.trans(key), input_precision="ieee")
    if MASKED:
        seen = position[None, :] <= bound[:, None]
        if WINDOWED:
            seen = seen & (position[None, :] > limit[:, None] - window)
        score = tl.where(seen, score, -float("inf"))
    fresh = tl.maximum(peak, tl.max(score, 1) * scale)
    shift = tl.where(fresh == -float("inf"), 0.0, fresh)  # a row that has seen nothing yet: exp2(-inf - 0), not nan
    weight = tl.exp2(
        tl.fma(score, tl.full(score.shape, scale, tl.float32), tl.broadcast_to(-shift[:, None], score.shape))
    )
    decay = tl.exp2(peak - shift)
    total = tl.fma(total, decay, tl.sum(weight, 1))
    acc = tl.dot(weight.to(value.dtype), value, acc * decay[:, None], input_precision="ieee")
    return fresh, total, acc


@triton.jit
def _walk(
    query: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    kv: tl.tensor,
    start: tl.tensor,
    length: tl.tensor,
    mine: tl.tensor,
    sees: tl.tensor,
    window: tl.tensor,
    scale: tl.tensor,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WINDOWED: tl.constexpr,
    SKIP: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """All tiles of an item, whose `length` slots `kv` stand at positions `start`..; its rows are `mine` and see up to
    `sees`."""
    n = tl.arange(0, BLOCK_N)
    last = length - 1
    bound = tl.minimum(sees, start + last)
    peak = tl.full((BLOCK_M,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    # lanes beyond the item read its last slot again: no memory outside the item is touched, no load needs a mask
    slots = tl.load(kv + tl.minimum(n, last))
    clear = 0
    if SKIP:  # tiles that every row sees whole need no masks: all but the last of a long chunk, all of a shared prefix
        lowest = tl.min(tl.where(mine, bound, start + last), 0)
        clear = tl.maximum(lowest - start + 1, 0) // BLOCK_N * BLOCK_N
        for at in tl.range(0, clear, BLOCK_N):
            # the next tile's slots are loaded one iteration ahead, so that its keys' load need not wait for them
            following = tl.load(kv + tl.minimum(at + BLOCK_N + n, last))
            peak, total, acc = _tile(
                query, keys, values, slots, start + at + n, bound, sees, window, scale, peak, total, acc,
                DIM, BLOCK_D, False, WINDOWED,
            )  # fmt: skip
            slots = following
    for at in tl.range(clear, length, BLOCK_N):
        following = tl.load(kv + tl.minimum(at + BLOCK_N + n, last))
        peak, total, acc = _tile(
            query, keys, values, slots, start + at + n, bound, sees, window, scale, peak, total, acc,
            DIM, BLOCK_D, True, WINDOWED,
        )  # fmt: skip
        slots = following
    return peak, total, acc


@triton.jit
def _item(
    unit: tl.tensor,
    q: tl.tensor,
    cache: tl.tensor,
    kv: tl.tensor,
    item_rows: tl.tensor,
    items: tl.tensor,
    limit: tl.tensor,
    out: tl.tensor,
    partial_rows: tl.tensor,
    partial_lse: tl.tensor,
    scale: tl.tensor,
    window: tl.tensor,
    head_rows: tl.tensor,
    value_rows: tl.tensor,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WINDOWED: tl.constexpr,
    SKIP: tl.constexpr,
) -> None:
    """One item for one KV head. Row r is query token r // GROUP, query head r % GROUP of the KV head's group."""
    item = items + unit // (HEADS // GROUP) * 6
    head = unit % (HEADS // GROUP)
    first = tl.load(item)
    count = tl.load(item + 1)
    kv_at = tl.load(item + 2)
    start = tl.load(item + 3)
    length = tl.load(item + 4)
    partial = tl.load(item + 5)

    r = tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    token_in_item = r // GROUP
    mine = r < count * GROUP
    token = tl.load(item_rows + first + token_in_item, mine, 0)
    sees = tl.load(limit + token, mine, -1)
    query_head = head * GROUP + r % GROUP
    row = token.to(tl.int64) * HEADS + query_head
    inside = mine[:, None] & (d[None, :] < DIM)
    query = tl.load(q + row[:, None] * DIM + d[None, :], inside, 0.0)

    keys = cache + head_rows.to(tl.int64) * (head * DIM)
    values = keys + value_rows.to(tl.int64) * DIM
    peak, total, acc = _walk(
        query, keys, values, kv + kv_at, start, length, mine, sees, window, scale,
        DIM, BLOCK_D, BLOCK_M, BLOCK_N, WINDOWED, SKIP,
    )  # fmt: skip
    _write(
        item_rows + first, partial, mine, token_in_item, query_head, out, partial_rows, partial_lse, peak, total, acc,
        HEADS, DIM, BLOCK_D,
    )  # fmt: skip


@triton.jit
def _write(
    rows: tl.tensor,
    partial: tl.tensor,
    mine: tl.tensor,
    token_in_item: tl.tensor,
    query_head: tl.tensor,
    out: tl.tensor,
    partial_rows: tl.tensor,
    partial_lse: tl.tensor,
    peak: tl.tensor,
    total: tl.tensor,
    acc: tl.tensor,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """Normalised rows: final ones, or partial ones with their lse. A row that saw nothing is zero, its lse -inf."""
    d = tl.arange(0, BLOCK_D)
    inside = mine[:, None] & (d[None, :] < DIM)
    some = tl.where(total == 0.0, 1.0, total)
    acc = acc * (1.0 / some)[:, None]
    if partial < 0:
        # the tokens are loaded again: addresses that live across the loops would cost registers
        row = tl.load(rows + token_in_item, mine, 0).to(tl.int64) * HEADS + query_head
        tl.store(out + row[:, None] * DIM + d[None, :], acc.to(out.dtype.element_ty), inside)
    else:
        into = (partial + token_in_item).to(tl.int64) * HEADS + query_head
        tl.store(partial_rows + into[:, None] * DIM + d[None, :], acc, inside)
        tl.store(partial_lse + into, tl.where(total == 0.0, -float("inf"), peak + tl.log2(some)), mine)


@triton.jit(do_not_specialize=_SIZES, do_not_specialize_on_alignment=_LISTS)
def segments(
    q: tl.tensor,
    cache: tl.tensor,
    kv: tl.tensor,
    item_rows: tl.tensor,
    items: tl.tensor,
    counts: tl.tensor,
    limit: tl.tensor,
    out: tl.tensor,
    partial_rows: tl.tensor,
    partial_lse: tl.tensor,
    scale: tl.tensor,
    window: tl.tensor,
    head_rows: tl.tensor,
    value_rows: tl.tensor,
    padded: tl.tensor,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WINDOWED: tl.constexpr,
    SKIP: tl.constexpr,
    CLASS: tl.constexpr,
) -> None:
    """All `counts[CLASS]` items of a class, each for every KV head; program p takes units p, p + programs, ...

    q `[padded, HEADS, DIM]`, cache `[2, KV_HEADS, slots, DIM]` with `head_rows` rows between heads and `value_rows`
    between keys and values, out `[padded, HEADS, DIM]`; partial_rows `[partials, HEADS, DIM] float32` (normalised),
    partial_lse `[partials, HEADS] float32` (log2 of the sum of exponentials; -inf: nothing seen). `scale` includes
    log2(e). Of the first `padded` rows (0 for the second class of a batch) those of negative limit become zero.

    Floor: narrow items, 4 D bytes per (position, KV head) in 16 bits: KV bytes / bandwidth. Wide items of long chunks,
    4 D FLOP per (row, position), about half of them for a causal chunk; keys come from L2, once per item: M = 64 rows
    make 64 FLOP a byte, 128 rows twice that. What the compiler makes of it for sm_90 (bf16, D 64 / 128, 4 heads per KV
    head): narrow 101 / 96 registers and 70 KiB of shared memory, 3 programs of 4 warps a multiprocessor with 32 to 64
    KiB in flight each (LDGSTS of 16 bytes; HMMA m16n8k16); wide, M = 64: 174 / 255 and 56 / 112 KiB, 2 programs of 4
    warps (HGMMA); M = 128: 213 / 255 and 64 / 128 KiB, 1 of 8 warps. No spills in 16 bits.
    """
    program = tl.program_id(0)
    programs = tl.num_programs(0)
    flag = tl.load(limit + program, program < padded, 0)  # used below: its latency is hidden
    units = tl.load(counts + CLASS) * (HEADS // GROUP)
    for unit in tl.range(program, units, programs):
        _item(
            unit, q, cache, kv, item_rows, items, limit, out, partial_rows, partial_lse, scale, window, head_rows,
            value_rows, HEADS, GROUP, DIM, BLOCK_D, BLOCK_M, BLOCK_N, WINDOWED, SKIP,
        )  # fmt: skip
    token = program
    while token < padded:
        if flag < 0:
            for at in tl.range(0, HEADS * DIM, 1024):
                lane = at + tl.arange(0, 1024)
                blank = tl.zeros((1024,), out.dtype.element_ty)
                tl.store(out + token.to(tl.int64) * (HEADS * DIM) + lane, blank, lane < HEADS * DIM)
        token += programs
        flag = tl.load(limit + token, token < padded, 0)


def block_d(dim: int) -> int:
    """Columns that a program holds for `dim`: a power of two, at least what a product takes."""
    return max(16, 1 << (dim - 1).bit_length())


def tile(rows: int, dim: int, itemsize: int) -> dict[str, int]:
    """BLOCK_N, warps and stages for items of up to `rows` rows. BLOCK_N divides the plan's `ALIGN` (128)."""
    if itemsize == 4:  # exact products have no tensor cores: for tests and comparisons, not for speed
        return {"BLOCK_N": 32 if rows == NARROW_M else 16, "num_warps": 4 if rows == NARROW_M else 8, "num_stages": 1}
    block_n = max(32, min(128, 8192 // block_d(dim)))  # 16 KiB of keys, and of values, per stage
    if rows == NARROW_M:
        return {"BLOCK_N": block_n, "num_warps": 4, "num_stages": 3}
    return {"BLOCK_N": min(64, block_n), "num_warps": 8 if rows > 64 or dim > 128 else 4, "num_stages": 3}


def attention(
    q: torch.Tensor, layout: Layout, plan: TritonPlan, cache: torch.Tensor, window: int | None, dtype: torch.dtype
) -> torch.Tensor:
    """See `Ops.attention`. `q` `[padded, H, D]` (in the cache's dtype, else it is converted), `plan` a `TritonPlan`,
    `cache` `[2, KH, C, D]` whose rows are contiguous: any strides between heads and between keys and values that are
    multiples of D."""
    heads, dim = layout.heads, layout.head_dim
    group = heads // layout.kv_heads
    work, partials = plan.work[window], plan.partials
    assert cache.stride(3) == 1 and cache.stride(2) == dim, "a slot's keys of one head are contiguous, and so are slots"
    assert cache.stride(0) % dim == 0 and cache.stride(1) % dim == 0, "heads and values begin at a multiple of D"
    q = q.to(cache.dtype).contiguous()
    out = torch.empty(len(q), heads * dim, dtype=dtype, device=q.device)  # all is written: an item, a merge or a zero
    classes = [(0, NARROW_M, work.narrow)] * work.has_narrow + [(1, work.wide_m, work.wide)] * work.has_wide
    if not classes:
        return out.zero_()
    for number, (column, rows, items) in enumerate(classes):
        segments[(_programs(q.device, len(items) * layout.kv_heads),)](
            q,
            cache,
            plan.kv,
            work.item_rows,
            items,
            work.counts,
            plan.limit,
            out,
            partials.acc,
            partials.lse,
            layout.scale * math.log2(math.e),
            window or 0,
            cache.stride(1) // dim,
            cache.stride(0) // dim,
            0 if number else len(q),
            HEADS=heads,
            GROUP=group,
            DIM=dim,
            BLOCK_D=block_d(dim),
            BLOCK_M=rows,
            WINDOWED=window is not None,
            SKIP=rows > NARROW_M and window is None,
            CLASS=column,
            **tile(rows, dim, cache.element_size()),
        )
    if work.has_merge:
        merge_partials(partials.acc, partials.lse, work.merge_ptr, work.merge_at, out, heads)
    return out


def _programs(device: torch.device, units: int) -> int:
    most = _ON_CPU
    if device.type == "cuda":
        most = _PER_SM * torch.cuda.get_device_properties(device).multi_processor_count
    return max(1, min(units, most))


def variants() -> tuple[Variant, ...]:
    """Narrow and wide items of common shapes (heads, KV heads, head_dim, windowed), in bf16; float32 for exactness."""
    shapes = (
        (9, 3, 64, False),
        (32, 32, 64, False),
        (32, 8, 64, False),
        (16, 8, 128, False),
        (32, 8, 128, False),
        (32, 8, 128, True),
        (64, 8, 128, False),
        (32, 32, 80, False),
        (32, 32, 96, False),
        (8, 4, 256, False),
    )
    found = [_variant(rows, *shape, "bf16") for shape in shapes for rows in (NARROW_M, WIDE_M)]
    found += [_variant(TALL_M, 32, 8, dim, False, "bf16") for dim in (64, 128)]
    found += [
        _variant(*shape, False, "fp32") for shape in ((NARROW_M, 9, 3, 64), (NARROW_M, 32, 8, 128), (WIDE_M, 9, 3, 64))
    ]
    return tuple(found)


def _variant(rows: int, heads: int, kv_heads: int, dim: int, windowed: bool, kind: str) -> Variant:
    chosen = tile(rows, dim, 4 if kind == "fp32" else 2)
    constants = {
        "HEADS": heads,
        "GROUP": heads // kv_heads,
        "DIM": dim,
        "BLOCK_D": block_d(dim),
        "BLOCK_M": rows,
        "BLOCK_N": chosen["BLOCK_N"],
        "WINDOWED": windowed,
        "SKIP": rows > NARROW_M and not windowed,
        "CLASS": int(rows > NARROW_M),
    }
    cached = ("q", "cache", "out")
    partial = ("partial_rows", "partial_lse")
    signature = dict.fromkeys(cached, f"*{kind}") | dict.fromkeys(partial, "*fp32") | dict.fromkeys(_LISTS, "*i32")
    signature |= {"scale": "fp32"} | dict.fromkeys(_SIZES, "i32") | dict.fromkeys(constants, "constexpr")
    return Variant(
        name=f"attention/m{rows}/{kind}/d{dim}/g{heads // kv_heads}" + "/windowed" * windowed,
        kernel=segments,
        signature=signature,
        constants=constants,
        warps=chosen["num_warps"],
        stages=chosen["num_stages"],
        aligned=cached + partial,
    )
