"""What was measured, round by round. In: figures. Out: tables, JSON, a picture.

A figure is the median over rounds. A ratio is ours over a peer's, of the same column: the median over rounds of the two
speeds of one round, so that above 1 we are faster. `best`: the fastest peer of a column, by its median.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from peers_parts.catalog import OURS, Variant
from peers_parts.work import agreement

SECONDS = ("start", "prefixed", "shared")  # columns that are told as seconds; the others are tokens per second
TITLES = {
    "start": "process to first token, s",
    "prefixed": "shared prefix, sent first or forked, s",
    "shared": "shared prefix, given together, s",
}
REFERENCE = "transformers bf16"  # whose greedy ids the others' are compared with, where it was measured


@dataclass(slots=True)
class Report:
    """Figures `values[label][column]`, a pair of seconds and tokens for each round; `over`: columns that were cut or
    failed, with the reason; `skipped`: peers that are not here; `ids`: those of "decode 1"."""

    facts: dict[str, Any]
    variants: list[Variant]
    columns: list[str]
    values: dict[str, dict[str, list[tuple[float, int]]]] = field(default_factory=dict)
    over: dict[str, dict[str, str]] = field(default_factory=dict)
    lacks: dict[str, dict[str, str]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    ids: dict[str, list[int]] = field(default_factory=dict)
    limits: list[dict[str, float]] = field(default_factory=list)

    def add(self, label: str, column: str, seconds: float, tokens: int = 0) -> None:
        """One round's figure."""
        self.values.setdefault(label, {}).setdefault(column, []).append((seconds, tokens))

    def rates(self, label: str, column: str) -> list[float]:
        """A round each: tokens per second, or seconds for columns of `SECONDS`."""
        found = self.values.get(label, {}).get(column, [])
        return [seconds if column in SECONDS else tokens / seconds for seconds, tokens in found]

    def median(self, label: str, column: str) -> float | None:
        """Over rounds."""
        rates = self.rates(label, column)
        return statistics.median(rates) if rates else None

    def ratio(self, mine: str, theirs: str, column: str) -> float | None:
        """Ours over theirs; None unless both were measured."""
        pairs = zip(self.rates(mine, column), self.rates(theirs, column), strict=False)
        found = [b / a if column in SECONDS else a / b for a, b in pairs]
        return statistics.median(found) if found else None

    def best(self, column: str, bits: int = 0) -> str | None:
        """The fastest peer's label; `bits`: among those with such weights, 0: all."""
        medians = {
            variant.label: median
            for variant in self.variants
            if variant.peer != OURS
            and bits in (0, variant.bits)
            and (median := self.median(variant.label, column)) is not None
        }
        fastest = min if column in SECONDS else max
        return fastest(medians, key=lambda label: medians[label]) if medians else None

    def ratios(self) -> list[dict[str, Any]]:
        """Each of our variants over each peer's, and over the best of a column, of any and of its own precision."""
        rows = []
        for mine in (variant for variant in self.variants if variant.peer == OURS):
            for column in self.columns:
                over = {each.label: self.ratio(mine.label, each.label, column) for each in self.variants}
                best, alike = self.best(column), self.best(column, mine.bits)
                row = {"ours": mine.label, "column": column, "best": best, "over_best": over.get(best or "")}
                row |= {"best_of_same_bits": alike, "over_best_of_same_bits": over.get(alike or "")}
                peers = {name: found for name, found in over.items() if found is not None}
                rows.append(row | {"over": {name: peers[name] for name in peers if not name.startswith(f"{OURS} ")}})
        return rows

    def agreements(self) -> dict[str, int]:
        """How many greedy ids of one sequence equal the reference's, from the beginning."""
        reference = self.ids.get(REFERENCE) or self.ids.get(f"{OURS} torch-bf16") or []
        return {label: agreement(ids, reference) for label, ids in self.ids.items() if reference}

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        rows = []
        for variant in self.variants:
            for column in self.columns:
                rates = self.rates(variant.label, column)
                why = self.over.get(variant.label, {}).get(column) or self.lacks.get(variant.peer, {}).get(column)
                row = {"peer": variant.peer, "variant": variant.name, "bits": variant.bits, "column": column}
                row |= {"unit": "s" if column in SECONDS else "tok/s", "median": self.median(variant.label, column)}
                rows.append(row | {"rounds": rates, "missing": "" if rates else (why or "")})
        told = {"skipped": self.skipped, "versions": self.versions, "limits": self.limits}
        return {**self.facts, **told, "rows": rows, "ratios": self.ratios(), "same_ids": self.agreements()}

    def table(self, title: str) -> Table:
        """Medians for people."""
        out = Table(title=title)
        out.add_column("engine", no_wrap=True)
        for column in ["bits", *self.columns, "same ids"]:
            out.add_column(
                TITLES.get(column, f"{column}, tok/s" if column in self.columns else column), justify="right"
            )
        same = self.agreements()
        for variant in self.variants:
            cells = [self._cell(variant, column) for column in self.columns]
            out.add_row(variant.label, str(variant.bits), *cells, str(same.get(variant.label, "")))
        return out

    def ratio_table(self) -> Table:
        """Ours over the best peer of each column, for people."""
        out = Table(title="ours over the fastest peer of the column (above 1: ours is faster)")
        for name in ("column", "ours", "over the best", "which", "over the best of the same bits", "which "):
            out.add_column(name, justify="right" if name.startswith("over") else "left")
        for row in self.ratios():
            pairs = ((row["over_best"], row["best"]), (row["over_best_of_same_bits"], row["best_of_same_bits"]))
            cells = [cell for value, name in pairs for cell in ("" if value is None else f"{value:.2f}", name or "")]
            out.add_row(row["column"], row["ours"], *cells)
        return out

    def _cell(self, variant: Variant, column: str) -> str:
        found = self.median(variant.label, column)
        if found is not None:
            return f"{found:.2f}" if column in SECONDS else f"{found:,.0f}"
        why = self.over.get(variant.label, {}).get(column, "-")
        return why if why.startswith((">", "-")) else "failed"


def draw(report: Report, title: str, path: Path) -> bool:
    """A PNG with a panel for each column; False, and no picture, where matplotlib is not installed."""
    try:
        import matplotlib as mpl
    except ModuleNotFoundError:
        return False
    mpl.use("Agg")
    from matplotlib import pyplot

    across = min(4, len(report.columns))
    down = -(-len(report.columns) // across)
    size = (4.2 * across, down * (1.2 + 0.24 * len(report.variants)))
    picture, grid = pyplot.subplots(down, across, figsize=size, squeeze=False)
    panels = [panel for line in grid for panel in line]
    for number, (panel, column) in enumerate(zip(panels, report.columns, strict=False)):
        _panel(panel, report, column, named=number % across == 0)
    for panel in panels[len(report.columns) :]:
        panel.set_axis_off()
    picture.suptitle(title, fontsize=9)
    picture.tight_layout()
    picture.savefig(path, dpi=110)
    pyplot.close(picture)
    return True


def _panel(panel: Any, report: Report, column: str, *, named: bool) -> None:
    """Bars of one column, ours in another colour; beside each its figure."""
    labels = [variant.label for variant in report.variants]
    found = [report.median(label, column) for label in labels]
    colours = ["tab:green" if variant.peer == OURS else "tab:gray" for variant in report.variants]
    panel.barh(range(len(labels)), [value or 0.0 for value in found], color=colours)
    _numbers(panel, found, column)
    panel.set_yticks(range(len(labels)), labels if named else [""] * len(labels), fontsize=7)
    panel.invert_yaxis()
    panel.set_xlim(0, 1.25 * max((value or 0.0 for value in found), default=1.0) or 1.0)
    panel.set_title(TITLES.get(column, f"{column}, tokens/s"), fontsize=8)
    panel.tick_params(axis="x", labelsize=6)


def _numbers(panel: Any, found: Sequence[float | None], column: str) -> None:
    for at, value in enumerate(found):
        text = "-" if value is None else f" {value:.2f}" if column in SECONDS else f" {value:,.0f}"
        panel.text(value or 0.0, at, text, va="center", fontsize=6)
