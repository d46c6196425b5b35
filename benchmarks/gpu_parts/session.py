"""A run in sections. In: which ones, and how many seconds they may take. Out: their rows in a report, a log.

A section that fails is told and the next one begins; one that would not end in time is skipped, and said to be; one
that has an outcome already, from an earlier process or from one beside this, is passed by.
"""

from __future__ import annotations

import faulthandler
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from gpu_parts.floors import Limits
from gpu_parts.models import Models, Scale
from gpu_parts.place import Place
from gpu_parts.report import Outcome, Report, Row, cells
from gpu_parts.saved import Saved

LOST = 3  # exit status of a process whose device does not answer any more
_PATIENCE = 60.0  # seconds that a section may take beyond three times its estimate


class DeviceLost(Exception):
    """No work can run in this process any more."""


@dataclass(slots=True)
class Session:
    """What sections share. `models`: those to measure (empty: each section's own choice); `limits`: the chip's, once
    they are known; `known`: what was timed, by what names it (`engine.key`); `out`: where files go (None:
    nowhere); `state`: where the next process finds what was found; `peer_options`: the peer's, as JSON."""

    place: Place
    scale: Scale
    report: Report
    kept: Models
    out: Path | None
    deadline: float
    models: tuple[str, ...] = ()
    real: Path | None = None
    limits: Limits = field(default_factory=Limits)
    known: dict[str, float] = field(default_factory=dict)
    state: Path | None = None
    peer_options: str = "{}"
    running: tuple[str, float] | None = None

    def add(self, row: Row) -> None:
        """A figure; told, and saved, at once."""
        self.report.rows.append(row)
        self.say("  " + " | ".join(cell for cell in cells(row)[1:] if cell))
        self.save()

    def end(self, outcome: Outcome) -> None:
        """A section's; on the disk at once."""
        self.report.outcomes.append(outcome)
        self.running = None
        self.report.flush()
        self.save()

    def save(self, *, over: bool = False) -> None:
        """For the next process."""
        if self.state is None:
            return
        limits = self.limits.bandwidth, self.limits.rate
        report = self.report
        Saved(report.facts, report.rows, report.outcomes, limits, self.known, self.running, over).write(self.state)

    def resume(self, saved: Saved) -> None:
        """Go on where a process before this one ended."""
        self.report.facts, self.report.rows, self.report.outcomes = saved.facts, saved.rows, saved.outcomes
        self.limits, self.known = Limits(*saved.limits), saved.known

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


def run(session: Session, sections: list[Section], *, watched: bool = False) -> None:
    """Every section in turn; the report is on the disk after each. `watched`: a section that takes far too long ends
    the process. Raises `DeviceLost` when a section took the device along."""
    for section in sections:
        if any(outcome.name == section.name for outcome in session.report.outcomes):
            continue
        if session.left < section.seconds:
            note = f"{session.left:.0f} s are left of the budget, it takes about {section.seconds:.0f}"
            session.say(f"== {section.name}: skipped, {note}")
            session.end(Outcome(section.name, "skipped", 0.0, note))
            continue
        session.say(f"== {section.name} ({session.left:.0f} s left)")
        session.running = section.name, time.monotonic()
        session.save()
        with _watch(section) if watched else nullcontext():
            outcome = _outcome(session, section)
            session.say(f"== {section.name}: {outcome.status} in {outcome.seconds:.1f} s {outcome.note}".rstrip())
            session.end(outcome)
            if outcome.status == "failed":
                if not session.place.answers():
                    raise DeviceLost(outcome.note)
                session.kept.drop()
    session.save(over=True)


def _outcome(session: Session, section: Section) -> Outcome:
    began = time.monotonic()
    status, note = "done", ""
    try:
        section.run(session)
    except Exception as error:  # noqa: BLE001 (a section's failure is a result; the others go on)
        status, note = "failed", f"{type(error).__name__}: {error}"
        session.say(traceback.format_exc())
    return Outcome(section.name, status, time.monotonic() - began, note)


@contextmanager
def _watch(section: Section) -> Iterator[None]:
    """Ends the process, with every thread's stack on stderr, when the section does not end; a call that waits for the
    device cannot be interrupted otherwise."""
    faulthandler.dump_traceback_later(3 * section.seconds + _PATIENCE, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
