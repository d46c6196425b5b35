"""A run as processes, one after the other. In: the command of one. Out: what they found together, in time.

A process that dies, or that its own watch ends, costs the section it was at: the next one goes on behind it. When the
time is over the one that runs is killed. Nothing here touches the GPU, so nothing here can be lost with it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from gpu_parts.report import Outcome
from gpu_parts.saved import Saved, read


def run(command: Sequence[str], path: Path, seconds: float) -> tuple[Saved | None, int]:
    """Start `command --state path --until deadline` until no section is left or `seconds` are over. Returns what was
    found, None where the first process ended before its first section, and the last one's exit status."""
    deadline, outcomes = time.monotonic() + seconds, -1
    while True:
        status = _attend([*command, "--state", str(path), "--until", str(deadline)], deadline - time.monotonic())
        saved = read(path)
        if saved is None or saved.over:
            return saved, status or 0
        _ended(saved, status)
        saved.write(path)
        if status is None or len(saved.outcomes) <= outcomes:
            return saved, status or 0
        outcomes = len(saved.outcomes)


def _ended(saved: Saved, status: int | None) -> None:
    """Note what became of the section that was running when the process ended; `status` None: it was killed."""
    if saved.running is None:
        return
    (name, began), saved.running = saved.running, None
    took = time.monotonic() - began
    if status is None:
        saved.outcomes.append(Outcome(name, "stopped", took, "the time was over"))
    else:
        note = f"its process ended with status {status} (what it printed says why)"
        saved.outcomes.append(Outcome(name, "failed", took, note))


def _attend(command: Sequence[str], seconds: float) -> int | None:
    """The exit status of `command`; None if it had to be killed. Whatever it started ends with it."""
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0)
    try:
        return child.wait(max(0.1, seconds))
    except subprocess.TimeoutExpired:
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
