"""What was measured, turn by turn, beside its limits. In: figures. Out: a table, JSON, a picture.

A figure's rate is the median over turns, its range the lowest and highest turn. The share and the ratio to torch are
medians over turns as well: each turn's rate over the limit, and over torch's rate, of that very turn.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpu_parts.report import figure
from rich.table import Table

COLUMNS = ("section", "what", "runner", "median", "range", "unit", "limit", "bound by", "share", "x torch", "note")
_RIGHT = ("median", "range", "limit", "share", "x torch")


@dataclass(slots=True)
class Figure:
    """Rates `values`, one a turn, with the limit of each where there is one. `binds`: what takes the limit's time;
    `sizes`: what was asked for, for machines."""

    section: str
    what: str
    runner: str
    unit: str
    sizes: dict[str, int] = field(default_factory=dict)
    values: list[float] = field(default_factory=list)
    limits: list[float] = field(default_factory=list)
    binds: str = ""
    note: str = ""

    @property
    def median(self) -> float:
        """Over turns."""
        return statistics.median(self.values)

    @property
    def limit(self) -> float | None:
        """Over turns; None where there is none."""
        return statistics.median(self.limits) if self.limits else None

    @property
    def share(self) -> float | None:
        """Of the limit that was reached."""
        pairs = zip(self.values, self.limits, strict=bool(self.limits))
        return statistics.median(value / limit for value, limit in pairs) if self.limits else None

    def over(self, other: Figure | None) -> float | None:
        """How many times another's rate; None without one, and for itself."""
        if other is None or other is self:
            return None
        return statistics.median(mine / theirs for mine, theirs in zip(self.values, other.values, strict=True))


@dataclass(slots=True)
class Report:
    """All figures, in the order in which they were first measured; `facts`: what they hold for."""

    facts: dict[str, Any]
    figures: list[Figure] = field(default_factory=list)

    def of(self, section: str, what: str, runner: str, unit: str, **sizes: int) -> Figure:
        """The figure of these names, a new one when there is none."""
        for each in self.figures:
            if (each.section, each.what, each.runner) == (section, what, runner):
                return each
        self.figures.append(Figure(section, what, runner, unit, sizes))
        return self.figures[-1]

    def torch(self, of: Figure) -> Figure | None:
        """The same of torch."""
        alike = (each for each in self.figures if (each.section, each.what) == (of.section, of.what))
        return next((each for each in alike if each.runner == "torch"), None)

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        rows = []
        for each in self.figures:
            row = {"section": each.section, "what": each.what, "runner": each.runner, "unit": each.unit, **each.sizes}
            row |= {"median": each.median, "lowest": min(each.values), "highest": max(each.values)}
            row |= {"limit": each.limit, "bound_by": each.binds, "share": each.share}
            rows.append(row | {"over_torch": each.over(self.torch(each)), "note": each.note})
        return {**self.facts, "rows": rows}

    def table(self, title: str) -> Table:
        """For people."""
        out = Table(title=title)
        for name in COLUMNS:
            out.add_column(name, justify="right" if name in _RIGHT else "left", no_wrap=name != "note")
        for each in self.figures:
            if each.section == "grouped":  # a table of its own, cpu_parts/grouped.py
                continue
            low, high = figure(min(each.values)), figure(max(each.values))
            rates = (figure(each.median), f"{low} - {high}" if low != high else "", each.unit, figure(each.limit))
            shares = (each.binds, figure(each.share), figure(each.over(self.torch(each))))
            out.add_row(each.section, each.what, each.runner, *rates, *shares, each.note)
        return out


def draw(figures: Iterable[Figure], title: str, path: Path) -> bool:
    """A PNG with the share of the limit of every workload that has one, by runner; False, and no picture, where none
    has one or matplotlib is not installed."""
    try:
        import matplotlib as mpl
    except ModuleNotFoundError:
        return False
    mpl.use("Agg")
    from matplotlib import pyplot

    shares = [(each, each.share) for each in figures if each.section != "limits"]
    limited = [each for each, share in shares if share is not None and math.isfinite(share)]
    if not limited:
        return False
    places = list(dict.fromkeys(f"{each.section}: {each.what}" for each in limited))
    runners = list(dict.fromkeys(each.runner for each in limited))
    picture, axes = pyplot.subplots(figsize=(10, 1.5 + 0.2 * len(places) * max(1, len(runners))))
    height = 0.8 / max(1, len(runners))
    for number, runner in enumerate(runners):
        mine = [each for each in limited if each.runner == runner]
        at = [places.index(f"{each.section}: {each.what}") + (number + 0.5) * height - 0.4 for each in mine]
        axes.barh(at, [each.share or 0.0 for each in mine], height=height, label=runner)
        _label(axes, at, mine)
    axes.set_yticks(range(len(places)), places, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.15)
    axes.set_xlabel("share of the limit (bytes or operations, whichever binds); beside it the rate")
    axes.set_title(title, fontsize=9)
    axes.legend(fontsize=8)
    picture.tight_layout()
    picture.savefig(path, dpi=110)
    pyplot.close(picture)
    return True


def _label(axes: Any, places: Sequence[float], figures: Sequence[Figure]) -> None:
    for at, each in zip(places, figures, strict=True):
        axes.text((each.share or 0.0) + 0.01, at, f"{figure(each.median)} {each.unit}", va="center", fontsize=6)
