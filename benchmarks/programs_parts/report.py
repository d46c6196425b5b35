"""What was measured. In: outcomes, one a round. Out: a table, JSON, a picture."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from programs_parts.catalog import Workload
from programs_parts.rungs import Outcome

COLUMNS = (
    "workload", "rung", "calls", "rounds", "sent", "submitted", "cached", "computed", "/distinct", "forced", "decoded",
    "steps", "seconds", "p50", "p95", "first", "programs/s", "same", "x expert",
)  # fmt: skip


@dataclass(slots=True)
class Report:
    """Outcomes by workload and rung, a list with one a round; `lacks`: why a cell is empty."""

    facts: dict[str, Any]
    workloads: Sequence[Workload]
    cells: dict[tuple[str, str], list[Outcome]] = field(default_factory=dict)
    lacks: dict[tuple[str, str], str] = field(default_factory=dict)

    def add(self, workload: Workload, rung: str, outcome: Outcome) -> None:
        """A round."""
        self.cells.setdefault((workload.label, rung), []).append(outcome)

    def lack(self, workload: Workload, rung: str, why: str) -> None:
        """A cell that stays empty."""
        self.lacks[workload.label, rung] = why

    def distinct(self, label: str, number: int) -> int | None:
        """Distinct tokens of a workload's round: what its whole programs need."""
        whole = self.cells.get((label, "whole"), [])
        return whole[number].distinct if number < len(whole) else None

    def speed(self, label: str, rung: str, over: str = "expert") -> float | None:
        """How many times as fast as another rung: the median of the rounds' ratios."""
        mine, theirs = self.cells.get((label, rung)), self.cells.get((label, over))
        if not mine or not theirs or len(mine) != len(theirs):
            return None
        return float(statistics.median(b.seconds / a.seconds for a, b in zip(mine, theirs, strict=True)))

    def same(self, workload: Workload, rung: str) -> float | None:
        """The share of programs that end as in "whole"; None where noise decides. A client that sends texts again has
        them tokenised again, which may be other tokens than those that were made."""
        mine, theirs = self.cells.get((workload.label, rung), []), self.cells.get((workload.label, "whole"), [])
        if not workload.greedy or len(mine) != len(theirs):
            return None
        pairs = [pair for a, b in zip(mine, theirs, strict=True) for pair in zip(a.values, b.values, strict=True)]
        return sum(bool(a == b) for a, b in pairs) / len(pairs)

    def row(self, workload: Workload, rung: str) -> dict[str, Any]:
        """One cell's figures: counts of its first round, medians of seconds over rounds."""
        outcomes = self.cells[workload.label, rung]
        first, ends = outcomes[0], sorted(end for each in outcomes for end in each.completions)
        firsts = [value for each in outcomes for value in each.firsts]
        distinct = first.distinct or self.distinct(workload.label, 0)
        seconds = statistics.median(each.seconds for each in outcomes)
        client = rung in ("llama.cpp", "expert")
        return {
            "workload": f"{workload.label} {workload.name}",
            "rung": rung,
            "calls": first.calls,
            "rounds": workload.rounds if client else None,
            "sent": first.submissions,
            "submitted": first.submitted,
            "cached": first.cached,
            "computed": first.computed,
            "distinct": distinct,
            "/distinct": first.computed / distinct if first.computed and distinct else None,
            "forced": first.forced,
            "decoded": first.decoded,
            "steps": first.steps,
            "retractions": first.retractions,
            "critical steps": workload.steps,
            "seconds": seconds,
            "lowest": min(each.seconds for each in outcomes),
            "highest": max(each.seconds for each in outcomes),
            "p50": statistics.median(ends),
            "p95": ends[min(len(ends) - 1, int(0.95 * len(ends)))],
            "first": statistics.median(firsts) if firsts else None,
            "programs/s": len(first.values) / seconds,
            "same": self.same(workload, rung),
            "x expert": self.speed(workload.label, rung),
        }

    def rows(self) -> list[dict[str, Any]]:
        """All cells."""
        named = {workload.label: workload for workload in self.workloads}
        return [self.row(named[label], rung) for label, rung in self.cells]

    @property
    def control(self) -> float | None:
        """Of plain chat: seconds as whole programs over seconds call by call. It must be near 1."""
        speed = self.speed("W00", "whole", over="calls")
        return 1 / speed if speed else None

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        lacks = [{"workload": label, "rung": rung, "why": why} for (label, rung), why in self.lacks.items()]
        return {**self.facts, "control": self.control, "rows": self.rows(), "lacks": lacks}

    def table(self, title: str) -> Table:
        """For people."""
        out, last = Table(title=title, padding=(0, 1)), ""
        for name in COLUMNS:
            out.add_column(name, justify="left" if name in ("workload", "rung") else "right", no_wrap=True)
        for row in sorted(self.rows(), key=lambda row: str(row["workload"])):
            if last and last != row["workload"]:
                out.add_section()
            shown = ["" if name == "workload" and last == row["workload"] else _shown(row[name]) for name in COLUMNS]
            out.add_row(*shown)
            last = str(row["workload"])
        return out


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def draw(report: Report, title: str, path: Path) -> bool:
    """A PNG: how many times as fast as the expert client each rung is, by workload; False, and no picture, where
    matplotlib is not installed, or nothing can be compared."""
    try:
        import matplotlib as mpl
    except ModuleNotFoundError:
        return False
    mpl.use("Agg")
    from matplotlib import pyplot

    places = [f"{each.label} {each.name}" for each in report.workloads]
    rungs = [rung for rung in dict.fromkeys(rung for _, rung in report.cells) if rung != "expert"]
    speeds = {rung: [report.speed(each.label, rung) for each in report.workloads] for rung in rungs}
    shown = [rung for rung in rungs if any(speeds[rung])]
    if not shown:
        return False
    picture, axes = pyplot.subplots(figsize=(10, 1.5 + 0.16 * len(places) * len(shown)))
    height = 0.8 / len(shown)
    for number, rung in enumerate(shown):
        pairs = [(at, speed) for at, speed in enumerate(speeds[rung]) if speed]
        at = [place + (number + 0.5) * height - 0.4 for place, _ in pairs]
        axes.barh(at, [speed for _, speed in pairs], height=height, label=rung)
        for place, (_, speed) in zip(at, pairs, strict=True):
            axes.text(speed, place, f" {speed:.2g}", va="center", fontsize=6)
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(places)), places, fontsize=8)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("times as fast as the expert client on ramet serve")
    axes.set_title(title, fontsize=9)
    axes.legend(fontsize=7)
    picture.tight_layout()
    picture.savefig(path, dpi=110)
    pyplot.close(picture)
    return True
