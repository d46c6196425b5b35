"""What was measured, beside its limit, its peer and its target. In: rows, as sections find them. Out: one table, JSON.

A row's ratio is what its target is about: the share of a limit that was reached, or how often a peer's figure.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

COLUMNS = ("section", "what", "measured", "unit", "limit", "peer", "ratio", "target", "met", "note")


@dataclass(frozen=True, slots=True)
class Target:
    """What `ratio` (else `measured`) must be: at least, or at most."""

    least: float | None = None
    most: float | None = None

    def met(self, value: float) -> bool:
        """Never by a value that is not a number."""
        if math.isnan(value):
            return False
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)

    def __str__(self) -> str:
        bounds = ((">=", self.least), ("<=", self.most))
        return " and ".join(f"{sign} {value:g}" for sign, value in bounds if value is not None)


@dataclass(frozen=True, slots=True)
class Row:
    """One figure. `limit`: what the chip allows, in the same unit; `peer`: what it is compared with, likewise. `must`:
    missing the target is a defect of correctness and not of speed."""

    section: str
    what: str
    measured: float
    unit: str
    limit: float | None = None
    peer: float | None = None
    ratio: float | None = None
    target: Target | None = None
    note: str = ""
    must: bool = False

    @property
    def met(self) -> bool | None:
        """None without a target."""
        return None if self.target is None else self.target.met(self.measured if self.ratio is None else self.ratio)

    def as_json(self) -> dict[str, Any]:
        """Plain values; what is not a number becomes null."""
        found = asdict(self) | {"target": None if self.target is None else str(self.target), "met": self.met}
        return {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in found.items()}


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a section ended: "done", "skipped" or "failed"; seconds that it took; why."""

    name: str
    status: str
    seconds: float
    note: str = ""


@dataclass(slots=True)
class Report:
    """Everything a run found. `facts`: device, versions, date, command; `path`: where JSON goes after every section
    (None: nowhere)."""

    facts: dict[str, Any]
    path: Path | None = None
    rows: list[Row] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)

    def flush(self) -> None:
        """Write what is there so far; a killed run leaves a whole file."""
        if self.path is None:
            return
        rows = [row.as_json() for row in self.rows]
        data = {**self.facts, "sections": [asdict(outcome) for outcome in self.outcomes], "rows": rows}
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
        part.replace(self.path)

    @property
    def broken(self) -> list[str]:
        """What makes the run a failure: sections that failed, rows that had to be right and are not."""
        failed = [f"{outcome.name}: {outcome.note}" for outcome in self.outcomes if outcome.status == "failed"]
        wrong = [f"{row.section}: {row.what} is {figure(row.measured)}, target {row.target}" for row in self.rows
                 if row.must and row.met is False]  # fmt: skip
        return failed + wrong

    def table(self, title: str) -> Table:
        """All rows for people; those that had to be right, and are, as one row a section."""
        out = Table(title=title)
        for name in COLUMNS:
            numeric = name in ("measured", "limit", "peer", "ratio")
            out.add_column(name, justify="right" if numeric else "left", no_wrap=name != "note")
        right = Counter(row.section for row in self.rows if row.must and row.met)
        for section, count in right.items():
            of = sum(row.must for row in self.rows if row.section == section)
            out.add_row(section, "what must be right, and is", str(count), "rows", str(of))
        for row in self.rows:
            if not (row.must and row.met):
                out.add_row(*cells(row))
        return out

    def verdicts(self) -> list[str]:
        """A line for each target of speed: whether it was met, and by what."""
        found = []
        for row in self.rows:
            if row.met is not None and not row.must:
                value = figure(row.measured if row.ratio is None else row.ratio)
                found.append(
                    f"{'met   ' if row.met else 'MISSED'} {value:>7} {row.target!s:<8} {row.section}: {row.what}"
                )
        return found


def cells(row: Row) -> tuple[str, ...]:
    """The row as text, in the order of `COLUMNS`."""
    met = {None: "", True: "yes", False: "NO"}[row.met]
    numbers = [figure(value) for value in (row.limit, row.peer, row.ratio)]
    target = "" if row.target is None else str(row.target)
    return (row.section, row.what, figure(row.measured), row.unit, *numbers, target, met, row.note)


def figure(value: float | None) -> str:
    """Three significant digits, and no exponent for what people read."""
    if value is None:
        return ""
    if not math.isfinite(value):
        return str(value)
    if value and abs(value) < 0.001:
        return f"{value:.2g}"
    digits = 0 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}"


def slug(name: str) -> str:
    """A device's name as a part of a file's."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "unknown"
