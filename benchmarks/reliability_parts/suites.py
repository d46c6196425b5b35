"""Promises that tests measure: in: the test suite. Out: findings about what it counted.

`make sim` leaves its figures; where they are there and newer than the source, they are read, and else a short campaign
stands in for it, as a smaller measurement.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reliability_parts.board import Finding, Unmeasured, Violation
from reliability_parts.place import Place

SUMMARY = Path("build") / "sim.json"  # what `make sim` writes
LONGEST = 280.0  # seconds of one suite


def _run(place: Place, what: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python with these arguments, in the checkout; `what` names it in `Unmeasured` when it takes too long."""
    try:
        return subprocess.run(
            [sys.executable, "-P", *arguments],
            cwd=place.folder,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=LONGEST,
            check=False,
            env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "PYTHONSAFEPATH": "1"},
        )
    except subprocess.TimeoutExpired:
        raise Unmeasured(f"{what} took more than {LONGEST:g} s: {' '.join(arguments)}") from None


def suite(place: Place, *arguments: str) -> dict[str, int]:
    """Run tests; how many passed, failed, were skipped. Raises `Violation` with the first lines of what failed."""
    done = _run(place, "tests", "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments)
    counts = {word: int(count) for count, word in re.findall(r"(\d+) (passed|failed|errors?|skipped)", done.stdout)}
    if done.returncode == 1:
        wrong = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
        raise Violation(f"{counts.get('failed', 0)} tests failed: {'; '.join(wrong)[:300]}")
    if done.returncode:
        raise Unmeasured(f"pytest ended with {done.returncode}: {(done.stdout + done.stderr)[-300:].strip()}")
    return counts


def simulated(place: Place, size: Mapping[str, float]) -> list[Finding]:
    """10^6 steps with faults, and 10^5 rounds of the prefix cache, as `make sim` left them; else `few` steps now."""
    found = summary(place.folder) if size["steps"] > size["few"] else None
    if found is None:
        place.say(f"  no {SUMMARY.as_posix()} of this source: a short campaign instead (`make sim` is the whole)")
        return told(campaign(place, int(size["few"])), 1, 0)
    place.say(f"  read from {SUMMARY.as_posix()}")
    return told(found, size["steps"], 100_000)


def campaign(place: Place, steps: int) -> dict[str, float]:
    """What a short campaign says. Raises `Violation` with the command that repeats its first failure."""
    done = _run(place, "the simulation", "tests/sim/sim.py", "--steps", str(steps), "--rounds", str(steps // 10))
    first = re.search(r"(\d+) steps of (\d+) programs, (\d+) rounds", done.stdout)
    second = re.search(r"(\d+) seeds, (\d+) failed", done.stdout)
    if first is None or second is None:
        raise Unmeasured(f"the simulation said: {(done.stdout + done.stderr)[-300:].strip()}")
    again = re.search(r"again: (.*)", done.stdout)
    if again:
        raise Violation(f"a simulated world failed; again: {again[1]}")
    names = ("steps", "programs", "rounds", "worlds", "failures")
    return dict(zip(names, map(float, (*first.groups(), *second.groups())), strict=True))


def summary(folder: Path) -> dict[str, Any] | None:
    """What `make sim` left, unless the source is newer than it."""
    try:
        made = (folder / SUMMARY).stat().st_mtime
        found = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    sources = [path for part in ("runtime", "tests/sim") for path in (folder / part).rglob("*.py")]
    return found if all(path.stat().st_mtime <= made for path in sources) else None


def told(found: Mapping[str, Any], steps: float, rounds: float) -> list[Finding]:
    """Findings of a campaign's figures; a leaked slot is a failure like any broken invariant."""
    least = {"steps": steps, "rounds": rounds}
    names = {"steps": "checked steps", "rounds": "rounds of the prefix cache", "worlds": "seeds", "failures": "failed"}
    return [
        Finding(names.get(name, name), float(value), least=least.get(name), most=0.0 if name == "failures" else None)
        for name, value in found.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]


def anomalous(place: Place, size: Mapping[str, float]) -> list[Finding]:
    """The k-th allocation, message, advance, forward, ... fails, for k = 1, 2, ... until none is left."""
    files = sorted((place.folder / "tests" / "runtime").glob("test_anomalies*.py"))
    if not files:
        raise Unmeasured("there are no tests/runtime/test_anomalies*.py")
    some = [] if size["every"] else ["-m", "not nightly"]
    nightly = ["-m", "nightly or not nightly"] if size["every"] else []
    counts = suite(place, *(path.relative_to(place.folder).as_posix() for path in files), *some, *nightly)
    return [
        Finding("points of failure and controls that passed", counts.get("passed", 0), least=1),
        Finding("failed", counts.get("failed", 0), most=0),
    ]
