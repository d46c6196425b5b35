"""When reading a shared prefix once pays: whole decode steps of the native runner, grouped against ungrouped.

In: runners of native dtypes, numbers of members, lengths of a prefix. Out: figures (ungrouped / grouped seconds, and
beside it the same of two ungrouped steps, which is the noise), a table of them, and per number of members the shortest
prefix from which grouping is never slower. `native.PAYS` comes from here.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Sequence

import numpy as np
from rich.table import Table

from cpu_parts.report import Figure, Report
from cpu_parts.runners import Subject, forward, greedy
from ramet.kernels import groups
from ramet.kernels.cpu import library
from ramet.runtime.batch import Batch, Targets
from ramet.runtime.native import PAYS, NativeRunner

SECTION = "grouped"
MEMBERS = (2, 3, 4, 8, 16, 32, 64)
PREFIXES = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
OWN = 32  # tokens of a member's own
EVEN = 0.98  # of the ungrouped rate: grouping may cost so much and is still called no slower
_CELL = 1 << 16  # positions read ungrouped, up to which a cell is timed `steps` times; longer ones half as often


def slots(members: Sequence[int], prefixes: Sequence[int]) -> int:
    """KV slots that the largest step has."""
    return max(prefixes) + max(members) * OWN


def step(members: int, prefix: int) -> Batch:
    """The next token of each of `members` sequences: `prefix` shared slots, then `OWN` of its own."""
    length, order, none = prefix + OWN, np.arange(members, dtype=np.int32), np.zeros(0, np.int32)
    shared = np.broadcast_to(np.arange(prefix, dtype=np.int32), (members, prefix))
    own = prefix + order[:, None] * OWN + np.arange(OWN, dtype=np.int32)
    listed = np.concatenate((shared, own), axis=1).astype(np.int32)
    ends = np.arange(members + 1, dtype=np.int32)
    return Batch(
        step=0,
        tokens=order,
        positions=np.full(members, length - 1, np.int32),
        slots=listed[:, -1].copy(),
        qo_indptr=ends,
        kv_indptr=ends * np.int32(length),
        kv_indices=listed.reshape(-1),
        feed=none,
        feed_rows=none,
        draws=greedy(order),
        targets=Targets(none, none),
    )


def seconds(runner: NativeRunner, batch: Batch, steps: int) -> tuple[float, float, float]:
    """The least seconds of a step grouped, ungrouped, and ungrouped once more: in turns, each first as often. With one
    thread CPU time, which a busy machine changes little."""
    clock = time.thread_time if runner.threads == 1 else time.perf_counter
    ways: tuple[int | None, ...] = (0, None, None)
    least = [float("inf")] * len(ways)
    kept = runner.pays
    try:
        for turn in range(steps):
            for at in range(turn, turn + len(ways)):
                way = at % len(ways)
                runner.pays = ways[way]
                start = clock()
                forward(runner, batch)
                least[way] = min(least[way], clock() - start)
    finally:
        runner.pays = kept
    return least[0], least[1], least[2]


def turn(
    report: Report, subject: Subject, members: Sequence[int], prefixes: Sequence[int], steps: int, *, keep: bool
) -> None:
    """All cells of one runner, once."""
    assert isinstance(subject.runner, NativeRunner), "others have no grouped attention on a CPU"
    for count in members:
        for prefix in prefixes:
            often = steps if count * prefix <= _CELL else -(-steps // 2)
            grouped, plain, again = seconds(subject.runner, step(count, prefix), often)
            if keep:
                sizes = {"members": count, "prefix": prefix, "own": OWN}
                what = f"{count} x ({prefix:,} shared + {OWN} own)"
                figure = report.of(SECTION, what, subject.name, "x ungrouped", **sizes)
                figure.values.append((plain + again) / 2 / grouped)
                same = report.of(SECTION, what + ", ungrouped twice", subject.name, "x ungrouped", twice=1, **sizes)
                same.values.append(again / plain)


def cells(figures: Iterable[Figure], runner: str) -> dict[tuple[int, int], float]:
    """Median ratios of a runner by (members, prefix)."""
    mine = (each for each in figures if (each.section, each.runner) == (SECTION, runner) and "twice" not in each.sizes)
    return {(each.sizes["members"], each.sizes["prefix"]): each.median for each in mine}


def even_from(found: dict[tuple[int, int], float], members: int) -> int | None:
    """The shortest prefix from which on grouping `members` is never slower; None where the longest is."""
    reached: int | None = None
    for prefix in sorted((prefix for count, prefix in found if count == members), reverse=True):
        if found[members, prefix] < EVEN:
            break
        reached = prefix
    return reached


def ruled_from(members: int, prefixes: Sequence[int], threads: int) -> int | None:
    """The shortest of `prefixes` that a runner's rule groups."""
    pays = PAYS * threads
    grouped = (p for p in sorted(prefixes) if groups.find(step(members, p), block=library.BLOCK, most=1, pays=pays))
    return next(grouped, None)


def noise(figures: Iterable[Figure], runner: str) -> float:
    """How far the ratios of two ungrouped steps are from 1: the median."""
    mine = [each for each in figures if each.section == SECTION and each.runner == runner and "twice" in each.sizes]
    return statistics.median(abs(each.median - 1) for each in mine)


def table(figures: Sequence[Figure], runner: str, threads: int) -> Table:
    """Ratios above 1: grouping is faster. Prefixes below a block of positions have nothing to group."""
    found = cells(figures, runner)
    members, prefixes = sorted({m for m, _ in found}), sorted({p for _, p in found})
    title = f"{runner}: ungrouped / grouped seconds of a step, {OWN} own tokens (noise {noise(figures, runner):.1%})"
    out = Table(title=title)
    for name in ("members", *(f"{prefix:,}" for prefix in prefixes), "even from", "grouped from"):
        out.add_column(name, justify="right")
    for count in members:
        row = (f"{found[count, prefix]:.3f}" for prefix in prefixes)
        edges = (even_from(found, count), ruled_from(count, prefixes, threads))
        out.add_row(str(count), *row, *("-" if edge is None else f"{edge:,}" for edge in edges))
    return out
