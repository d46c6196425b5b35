"""A run in sections. In: which ones, and how many seconds they may take. Out: their rows in a report, a log.

A section that fails is told and the next one begins; one that would not end in time is skipped, and said to be.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from gpu_parts.floors import Limits
from gpu_parts.models import Models, Scale
from gpu_parts.place import Place
from gpu_parts.report import Outcome, Report, Row, cells


@dataclass(slots=True)
class Session:
    """What sections share. `models`: those to measure (empty: each section's own choice); `limits`: the chip's, once
    they are known; `known`: milliseconds of what was timed, by whatever names it; `out`: where files go (None:
    nowhere)."""

    place: Place
    scale: Scale
    report: Report
    kept: Models
    out: Path | None
    deadline: float
    models: tuple[str, ...] = ()
    real: Path | None = None
    limits: Limits = field(default_factory=Limits)
    known: dict[tuple[object, ...], float] = field(default_factory=dict)

    def add(self, row: Row) -> None:
        """A figure; told at once."""
        self.report.rows.append(row)
        self.say("  " + " | ".join(cell for cell in cells(row)[1:] if cell))

    def say(self, text: str) -> None:
        """To the terminal and the log."""
        print(text, flush=True)
        if self.out is not None:
            with (self.out / "gpu.log").open("a", encoding="utf-8") as log:
                log.write(text + "\n")

    @property
    def left(self) -> float:
        """Seconds until the whole budget is spent."""
        return self.deadline - time.monotonic()


@dataclass(frozen=True, slots=True)
class Section:
    """`kind` is what `--only` names; `seconds`: what it takes on an H100, an estimate to skip by."""

    kind: str
    model: str
    seconds: float
    run: Callable[[Session], None]

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.kind} {self.model}".strip()


def run(session: Session, sections: list[Section]) -> None:
    """Every section in turn; the report is on the disk after each."""
    for section in sections:
        if session.left < section.seconds:
            note = f"{session.left:.0f} s are left of the budget, it takes about {section.seconds:.0f}"
            session.say(f"== {section.name}: skipped, {note}")
            session.report.outcomes.append(Outcome(section.name, "skipped", 0.0, note))
            session.report.flush()
            continue
        session.say(f"== {section.name} ({session.left:.0f} s left)")
        began = time.monotonic()
        status, note = "done", ""
        try:
            section.run(session)
        except Exception as error:  # noqa: BLE001 (a section's failure is a result; the others go on)
            status, note = "failed", f"{type(error).__name__}: {error}"
            session.say(traceback.format_exc())
            session.kept.drop()
        took = time.monotonic() - began
        session.say(f"== {section.name}: {status} in {took:.1f} s {note}".rstrip())
        session.report.outcomes.append(Outcome(section.name, status, took, note))
        session.report.flush()
