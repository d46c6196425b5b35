"""The table as a picture. In: a report. Out: a PNG with the ratio of each figure that has one, and its target; what the
engine does on the left, kernels on the right."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from gpu_parts.report import Report, Row, figure

ENGINE = ("decode", "prefill", "mix", "peer", "forks", "structured", "deterministic")
SIDES = (ENGINE, ("kernels",))
MOST = 3.0  # bars end there; their figures say more
_COLOURS = {None: "tab:gray", True: "tab:green", False: "tab:red"}


def draw(report: Report, path: Path) -> bool:
    """False, and no picture, where matplotlib is not installed or there is nothing to show."""
    rows = [r for r in report.rows if r.ratio is not None and math.isfinite(r.ratio)]
    sides = [[r for section in side for r in rows if r.section == section] for side in SIDES]
    sides = [side for side in sides if side]
    try:
        import matplotlib as mpl
    except ModuleNotFoundError:
        return False
    if not sides:
        return False
    mpl.use("Agg")
    from matplotlib import pyplot

    height = 1.2 + 0.17 * max(map(len, sides))
    picture, axes = pyplot.subplots(1, len(sides), figsize=(9.5 * len(sides), height), squeeze=False)
    for side, where in zip(sides, axes[0], strict=True):
        _bars(where, side, max(map(len, sides)))
    facts = [str(report.facts.get(name, "")) for name in ("device", "date", "commit")]
    picture.suptitle(", ".join(fact for fact in facts if fact), fontsize=10)
    picture.tight_layout()
    picture.savefig(path, dpi=110)
    pyplot.close(picture)
    return True


def _bars(axes: Any, rows: list[Row], most: int) -> None:
    """One line a row; what was reached, and the target, in figures on the right of the bars."""
    places = range(len(rows))
    ratios = [row.ratio or 0.0 for row in rows]
    axes.barh(places, [min(ratio, MOST) for ratio in ratios], color=[_COLOURS[row.met] for row in rows], height=0.75)
    for place, ratio, row in zip(places, ratios, rows, strict=True):
        said = f"{figure(ratio)}  ({row.target})" if row.target is not None else figure(ratio)
        axes.text(MOST + 0.05, place, said, va="center", fontsize=6.5)
        bound = None if row.target is None else row.target.least if row.target.most is None else row.target.most
        if bound is not None and bound <= MOST:
            axes.plot([bound, bound], [place - 0.45, place + 0.45], color="black", linewidth=1.5)
    axes.set_yticks(places, [f"{row.section}: {row.what}" for row in rows], fontsize=6.5)
    axes.set_ylim(most - 0.4, -0.6)  # both sides at one scale, the first row on top
    axes.set_xlim(0, MOST * 1.25)
    axes.set_xticks([0, 0.5, 1, 1.5, 2, 2.5, 3])
    axes.axvline(1, color="black", linewidth=0.4)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel(
        "share of the limit, or times the other; green: target met, red: missed; black: the target", fontsize=7
    )
