"""The simulation from the command line: a campaign over all scenes, or one world again.

In: how many steps, or a scene and a seed. Out: figures; exit status 1, and one command for each failure that repeats
it, when an invariant broke or an answer was wrong.
"""

from __future__ import annotations

import argparse
import importlib
import math
import resource
import subprocess
import sys
import threading
import time
import types
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

PACKAGE = "ramet_tests"  # this folder's parent, as a package: `-P` keeps it from the path
MOST_FAILURES = 5
WHOLE = 1_000_000  # steps
SUMMARY = Path(__file__).resolve().parents[2] / "build" / "sim.json"


def campaign() -> Any:
    """The module `campaign` of this folder."""
    package = sys.modules.setdefault(PACKAGE, types.ModuleType(PACKAGE))
    package.__path__ = [str(Path(__file__).resolve().parent.parent)]
    return importlib.import_module(f"{PACKAGE}.sim.campaign")


class Total:
    """What all workers have done so far; shared by their threads."""

    def __init__(self, tasks: Iterator[Any], steps: int, seconds: float = math.inf) -> None:
        self.worlds = self.steps = self.rounds = self.programs = 0
        self.seen: Counter[str] = Counter()
        self.failures: list[dict[str, Any]] = []
        self._tasks = tasks
        self.wanted = steps
        self._began = time.monotonic()
        self._seconds = seconds
        self._lock = threading.Lock()
        self._told = 0

    def next(self) -> Any | None:
        """The next task, or None when enough was done."""
        with self._lock:
            enough = self.steps >= self.wanted or len(self.failures) >= MOST_FAILURES
            late = time.monotonic() - self._began > self._seconds
            return None if enough or late else next(self._tasks)

    def add(self, report: dict[str, Any]) -> None:
        """A task was carried out."""
        with self._lock:
            self.worlds += 1
            self.steps += report["steps"]
            self.rounds += report["rounds"]
            self.programs += report["programs"]
            self.seen.update(report["seen"])
            if report["failure"]:
                self.failures.append(report)
                tell(f"FAILED {report['failure']}\n  again: {report['command']}\n{report['where']}")
            elif self.steps - self._told >= 100_000:
                self._told = self.steps
                tell(f"{self.steps} steps, {self.worlds} seeds")

    def sum_up(self) -> None:
        """The figures. CPU seconds are those of the workers that have ended."""
        seconds = self.seconds
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        tell(f"{self.steps} steps of {self.programs} programs, {self.rounds} rounds of the prefix cache")
        tell(f"{self.worlds} seeds, {len(self.failures)} failed")
        rate = self.steps / max(seconds, 1e-9)
        tell(f"{seconds:.0f} s, {used.ru_utime + used.ru_stime:.0f} CPU s of the workers, {rate:.0f} steps/s")
        for what, times in sorted(self.seen.items()):
            tell(f"  {what}: {times}")

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._began

    @property
    def status(self) -> int:
        """0: all that was wanted was done, and nothing failed."""
        if self.steps < self.wanted and not self.failures:
            tell(f"NOT DONE: {self.steps} of {self.wanted} steps in the time that there was")
        return 1 if self.failures or self.steps < self.wanted else 0


def leave(total: Total, seconds: float) -> None:
    """Leave a whole campaign's figures where the reliability scoreboard looks for them."""
    names = ("steps", "rounds", "programs", "worlds")
    found = {**{name: getattr(total, name) for name in names}, "failures": len(total.failures), "seconds": seconds}
    SUMMARY.parent.mkdir(parents=True, exist_ok=True)
    SUMMARY.write_bytes(msgspec.json.encode(found) + b"\n")


def tell(line: str) -> None:
    """A line of output, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def drive(total: Total) -> None:
    """Keep one worker process busy until enough was done."""
    command = [sys.executable, "-P", str(Path(__file__).resolve()), "--worker"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None, "both are pipes"
        while (task := total.next()) is not None:
            process.stdin.write(msgspec.json.encode(task) + b"\n")
            process.stdin.flush()
            line = process.stdout.readline()
            report = msgspec.json.decode(line) if line else _died(task)
            total.add({**report, "command": task.command})
            if not line:
                return
        process.stdin.close()


def _died(task: Any) -> dict[str, Any]:
    report = {"steps": 0, "rounds": 0, "programs": 0, "seen": {}, "where": ""}
    return {**report, "failure": f"the process died in {task.scene!r}, seed {task.seed}"}


def work() -> None:
    """A worker: tasks from standard input, reports to standard output, one a line."""
    module = campaign()
    for line in sys.stdin.buffer:
        report = module.carry_out(msgspec.json.decode(line, type=module.Task))
        sys.stdout.buffer.write(msgspec.json.encode(report) + b"\n")
        sys.stdout.buffer.flush()


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=WHOLE, help="checked steps of the campaign")
    parser.add_argument("--rounds", type=int, default=100_000, help="rounds of the prefix cache before them")
    parser.add_argument("--seconds", type=float, default=math.inf, help="stop, and fail, when it takes longer")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--seed", type=int, default=1_000_000, help="the first seed, or that of the one world")
    parser.add_argument("--scene", default="", help="run this one alone, with --seed")
    parser.add_argument("--world-steps", type=int, default=0, help="steps of the one world before it ends")
    parser.add_argument("--mutation", default="", help="seed this fault into the product: the world must fail")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work()
        return 0
    module = campaign()
    if options.scene:
        task = module.Task(options.scene, options.seed, options.world_steps, options.mutation)
        total = Total(iter(()), 0)
        total.add({**msgspec.to_builtins(module.carry_out(task)), "command": task.command})
    else:
        total = Total(module.tasks(options.seed, options.rounds), options.steps, options.seconds)
        threads = [threading.Thread(target=drive, args=(total,)) for _ in range(options.workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    total.sum_up()
    if total.steps >= WHOLE:
        leave(total, total.seconds)
    return total.status


if __name__ == "__main__":
    sys.exit(main())
