"""The table as a picture. In: a report. Out: a PNG with the ratio of each figure that has one, and its target."""

from __future__ import annotations

import math
from pathlib import Path

from gpu_parts.report import Report

PARTS = ("decode", "prefill", "mix", "forks", "structured", "deterministic", "peer", "kernels")


def draw(report: Report, path: Path) -> bool:
    """False, and no picture, where matplotlib is not installed or there is nothing to show."""
    rows = [r for r in report.rows if r.ratio is not None and math.isfinite(r.ratio) and r.section in PARTS]
    try:
        import matplotlib as mpl
    except ModuleNotFoundError:
        return False
    if not rows:
        return False
    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(11, 1.5 + 0.2 * len(rows)))
    labels = [f"{row.section}: {row.what}" for row in rows]
    ratios = [row.ratio or 0.0 for row in rows]
    colours = ["tab:gray" if row.met is None else "tab:green" if row.met else "tab:red" for row in rows]
    places = range(len(rows))
    axes.barh(places, [min(ratio, 3.0) for ratio in ratios], color=colours)
    for place, ratio, row in zip(places, ratios, rows, strict=True):
        axes.text(min(ratio, 3.0) + 0.02, place, f"{ratio:.2f}", va="center", fontsize=7)
        bound = None if row.target is None else row.target.least if row.target.most is None else row.target.most
        if bound is not None and bound <= 3:
            axes.plot([bound, bound], [place - 0.45, place + 0.45], color="black", linewidth=1.5)
    axes.set_yticks(places, labels, fontsize=7)
    axes.invert_yaxis()
    axes.set_xlim(0, 3.3)
    axes.set_xlabel("share of the limit, or times the peer; black: the target")
    axes.set_title(f"{report.facts.get('device', '')}, {report.facts.get('date', '')}")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return True
