"""The reliability scoreboard: each promise measured against real server processes. In: a model. Out: a table, JSON.

Rows: a promise, what was measured, a verdict (kept, broken, not measured). Servers are `ramet serve` processes on free
ports of the loopback interface; every process that is started is ended by its id. The whole takes some twelve minutes
of a quiet machine with two cores, `--quick` one or two, with smaller counts; timings on a busy machine are its own.
Exit status: 0; 1 when a promise is broken; 2 for wrong usage; 3 when a measurement itself failed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RESULTS = HERE / "results" / "reliability.json"
if str(HERE) not in sys.path:
    sys.path.insert(0, str(HERE))  # for reliability_parts: -P leaves it out

if TYPE_CHECKING:
    from reliability_parts.board import Row
    from reliability_parts.catalog import Promise
    from reliability_parts.place import Place


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    from reliability_parts.catalog import PROMISES
    from reliability_parts.page import unknown

    keys = ",".join(promise.key for promise in PROMISES)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help=f"some rows: {keys}")
    parser.add_argument("--quick", action="store_true", help="smaller counts, and random weights in every row")
    parser.add_argument("--model", default="default", help="the real model of some rows")
    parser.add_argument("--soak", type=float, default=0.0, metavar="MINUTES", help="of the soak; 0 is its own")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--out", type=Path, help=f"the JSON's file [{RESULTS.name} of a whole run]; --only replaces its rows"
    )
    parser.add_argument("--page", type=Path, help="write the page of a JSON (--from, or this run's)")
    parser.add_argument("--from", dest="source", type=Path, help="measure nothing: read this JSON")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(given)
    options.only = [key for key in options.only.split(",") if key]
    wrong = unknown(options.only)
    if wrong:
        parser.error(f"--only {','.join(wrong)}: must be some of {keys}")
    if options.soak < 0:
        parser.error(f"--soak {options.soak}: must be at least 0")
    return options


def measured(options: argparse.Namespace, say: Console) -> list[Row]:
    """All rows that are asked for, one after the other."""
    from reliability_parts.catalog import PROMISES
    from reliability_parts.place import Place

    real = "random:tiny" if options.quick else options.model
    place = Place("random:tiny", real, lambda text: say.print(text, markup=False), options.seed, ROOT)
    chosen = [promise for promise in PROMISES if not options.only or promise.key in options.only]
    rows = []
    for number, promise in enumerate(chosen):
        say.print(f"{number + 1}/{len(chosen)} {promise.key}: {promise.promise}", markup=False)
        row = promise.row(quick=options.quick)
        if promise.key == "soak" and options.soak:
            row.size["minutes"] = options.soak
            row.whole = options.soak >= promise.whole["minutes"]
        fill(row, promise, place)
        say.print(f"  {row.verdict} ({row.seconds:.0f} s): {row.measured()}", markup=False)
        rows.append(row)
    return rows


def fill(row: Row, promise: Promise, place: Place) -> None:
    """Measure one row. Whatever is raised becomes its verdict: the rows after it are measured all the same."""
    from reliability_parts.board import Unmeasured, Violation

    began = time.perf_counter()
    try:
        row.findings = promise.measure(place, row.size)
    except Violation as error:
        row.forced, row.reason = "broken", str(error)
    except Unmeasured as error:
        row.forced, row.reason = "not measured", str(error)
    except Exception as error:  # noqa: BLE001 (a row that cannot be measured must not keep the others from it)
        place.say(traceback.format_exc())
        row.forced, row.failed = "not measured", True
        row.reason = f"the measurement failed: {type(error).__name__}: {error}"
    if promise.key == "steps":  # a short campaign may have stood in for the whole one
        row.whole = row.whole and any(each.least == row.size["steps"] for each in row.findings)
    row.seconds = time.perf_counter() - began


def facts(options: argparse.Namespace, seconds: float, given: Sequence[str]) -> dict[str, Any]:
    """When, what, where."""
    from cpu import processor

    pages, size = (os.sysconf(name) if name in os.sysconf_names else 0 for name in ("SC_PHYS_PAGES", "SC_PAGE_SIZE"))
    shown = [each for each in given if not each.startswith("--json")]
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": pages * size / 2**30,
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
        "command": " ".join(["python", "-P", "benchmarks/reliability.py", *named(shown)]),
        "tiny": "random:tiny",
        "real": "random:tiny" if options.quick else options.model,
        "quick": options.quick,
        "seed": options.seed,
        "seconds": round(seconds, 1),
    }


def named(given: Sequence[str]) -> list[str]:
    """The command line without where its output went."""
    kept, skip = list[str](), False
    for each in given:
        if skip:
            skip = False
        elif each in ("--out", "--page"):
            skip = True
        elif not each.startswith(("--out=", "--page=")):
            kept.append(each)
    return kept


def commit() -> str:
    """The source's commit, with a + where it was changed; "unknown" outside of a repository."""
    try:
        asked = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
        done = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True)
        return done.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def merged(found: dict[str, Any], file: Path) -> dict[str, Any]:
    """A run of some rows put into the board of an earlier run, if `file` holds one: every row says when it was run."""
    from reliability_parts.catalog import PROMISES

    try:
        earlier = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return found
    rows = {row["key"]: row for row in (*earlier["rows"], *found["rows"])}
    return {**earlier, "rows": [rows[promise.key] for promise in PROMISES if promise.key in rows]}


def write(path: Path, text: str) -> None:
    """A file, and the folders that it needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def main(given: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    from reliability_parts.board import status, table
    from reliability_parts.page import rendered

    given = sys.argv[1:] if given is None else given
    options = arguments(given)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    say = Console(stderr=True, highlight=False, soft_wrap=True)
    code = 0
    if options.source:
        found = json.loads(options.source.read_text(encoding="utf-8"))
    else:
        began = time.perf_counter()
        rows = measured(options, say)
        about = facts(options, time.perf_counter() - began, given)
        for row in rows:
            row.run = {name: about[name] for name in ("date", "commit", "command", "load")}
        found = {**about, "rows": [row.as_json() for row in rows]}
        code = status(rows)
        out = options.out or (None if options.quick or options.only else RESULTS)
        if out is not None:
            found = merged(found, out) if options.only else found
            write(out, json.dumps(found, indent=2) + "\n")
        if options.json:
            print(json.dumps(found, indent=2))
        else:
            Console(highlight=False, width=None if sys.stdout.isatty() else 200).print(table(rows))
    if options.page:
        write(options.page, rendered(found, RESULTS.relative_to(ROOT).as_posix(), ROOT))
    return code


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # what was started ends with us
    sys.exit(main())
