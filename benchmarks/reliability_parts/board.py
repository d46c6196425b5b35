"""The scoreboard's arithmetic: in: what was measured, with its bounds. Out: verdicts, a table, JSON.

A finding is kept or broken only where its error allows to say so; a row is broken if one of its findings is, and kept
only if all that have a bound are. What cannot be said is `not measured`, and never counts as kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rich.table import Table

Verdict = Literal["kept", "broken", "not measured"]
SURE = 2.0  # standard errors between a value and its bound from which on we say on which side it is


class Violation(Exception):
    """A promise is broken, and no figure says it: a hang, a wrong answer, a silent end."""


class Unmeasured(Exception):
    """A row cannot be measured here; the message says why."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One figure. It promises to be at least `least` or at most `most`, or nothing. `error`: its standard error, in the
    same unit; 0 for what was counted or is itself an extreme."""

    what: str
    value: float
    unit: str = ""
    least: float | None = None
    most: float | None = None
    error: float = 0.0

    @property
    def verdict(self) -> Verdict | None:
        """None where nothing is promised."""
        if self.least is None and self.most is None:
            return None
        if not (math.isfinite(self.value) and math.isfinite(self.error)):
            return "not measured"
        margin = SURE * self.error
        over = -math.inf if self.most is None else self.value - self.most
        under = -math.inf if self.least is None else self.least - self.value
        distance = max(over, under)
        if distance > margin:
            return "broken"
        return "kept" if distance <= -margin else "not measured"

    def shown(self) -> str:
        """As a phrase: "slots back after the last left: 0.21 s (at most 1 s)"."""
        unit = "" if not self.unit else self.unit if self.unit == "%" else f" {self.unit}"
        error = f" ± {number(self.error)}" if self.error else ""
        bounds = [
            f"{word} {number(bound)}{unit}"
            for word, bound in (("at least", self.least), ("at most", self.most))
            if bound is not None
        ]
        said = f" ({', '.join(bounds)})" if bounds else ""
        return f"{self.what}: {number(self.value)}{error}{unit}{said}"


def number(value: float) -> str:
    """Four digits at most, whole numbers with separators."""
    if not math.isfinite(value):
        return "unknown"
    if value == int(value):
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


@dataclass(slots=True)
class Row:
    """A promise and what became of it. `whole`: measured at the size that is promised, and not at a smaller one.
    `reason` says why it is broken without a figure, or was not measured; `failed` if the measurement itself broke."""

    key: str
    title: str
    promise: str
    rules: str = ""
    tests: tuple[str, ...] = ()
    size: dict[str, float] = field(default_factory=dict)
    whole: bool = True
    findings: list[Finding] = field(default_factory=list)
    forced: Verdict | None = None
    reason: str = ""
    failed: bool = False
    seconds: float = 0.0
    run: dict[str, Any] = field(default_factory=dict)  # date, commit and command of its measurement

    @property
    def verdict(self) -> Verdict:
        """Of all findings together."""
        if self.forced is not None:
            return self.forced
        found = [finding.verdict for finding in self.findings if finding.verdict is not None]
        if "broken" in found:
            return "broken"
        return "kept" if found and set(found) == {"kept"} else "not measured"

    def measured(self) -> str:
        """All findings in one line, those first that break the promise."""
        order = {"broken": 0, "not measured": 1, "kept": 2, None: 3}
        phrases = [each.shown() for each in sorted(self.findings, key=lambda each: order[each.verdict])]
        return "; ".join(([self.reason] if self.reason else []) + phrases)

    def as_json(self) -> dict[str, Any]:
        """For the file."""
        return {
            "key": self.key,
            "title": self.title,
            "promise": self.promise,
            "rules": self.rules,
            "tests": list(self.tests),
            "size": self.size,
            "whole": self.whole,
            "measured": self.measured(),
            "verdict": self.verdict,
            "reason": self.reason,
            "failed": self.failed,
            "seconds": round(self.seconds, 1),
            "run": self.run,
            "findings": [
                {
                    "what": each.what,
                    "value": each.value if math.isfinite(each.value) else None,
                    "unit": each.unit,
                    "least": each.least,
                    "most": each.most,
                    "error": each.error if math.isfinite(each.error) else None,
                    "verdict": each.verdict,
                }
                for each in self.findings
            ],
        }


def table(rows: Sequence[Row]) -> Table:
    """Promise, measured, verdict."""
    out = Table(show_lines=True)
    out.add_column("row")
    out.add_column("promise", ratio=3)
    out.add_column("measured", ratio=5)
    out.add_column("verdict")
    out.add_column("s", justify="right")
    colours = {"kept": "green", "broken": "bold red", "not measured": "yellow"}
    for row in rows:
        verdict = f"[{colours[row.verdict]}]{row.verdict}[/]" + ("" if row.whole else "\n(small)")
        out.add_row(row.key, _plain(row.promise), _plain(row.measured()), verdict, f"{row.seconds:.0f}")
    return out


def _plain(text: str) -> str:
    return text.replace("[", "\\[")


def status(rows: Sequence[Row]) -> int:
    """The command's exit status: 1 if a promise is broken, 3 if a measurement itself failed, else 0."""
    if any(row.verdict == "broken" for row in rows):
        return 1
    return 3 if any(row.failed for row in rows) else 0
