"""One launch of an adapter: a process from its start to its end. In: a job. Out: what it told, line by line.

The time from the start of the process to its first token is taken by both sides' clocks of the same machine. A process
that is silent for too long is ended; the figure that it was about is then `cut`.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peers_parts.catalog import ADAPTERS, Peer

OPENING = 300.0  # seconds until a process begins with its first figure; compilers of others take minutes
_OURS = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "OMP_WAIT_POLICY")  # what `make` sets for us


@dataclass(slots=True)
class Told:
    """What came of a launch: a figure for each column, the column that was cut, the reason of a failure, the library's
    version, seconds to the first token."""

    figures: dict[str, dict[str, Any]] = field(default_factory=dict)
    cut: str = ""
    failed: str = ""
    version: str = ""
    first: float = float("nan")


def launch(peer: Peer, python: Path, job: dict[str, Any], seconds: float, opening: float = OPENING) -> Told:
    """Run it to its end. `opening`: seconds until its first figure, `seconds`: of each figure, at most."""
    environment = {name: value for name, value in os.environ.items() if name not in _OURS}
    environment |= {"PYTHONPATH": str(ADAPTERS), "OMP_NUM_THREADS": str(job["threads"]), **peer.environment}
    with tempfile.TemporaryFile() as errors:
        started = time.time()
        process = subprocess.Popen(
            [str(python), "-P", str(peer.script)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,  # it may have processes of its own, which end with it
        )
        try:
            told = _followed(process, job, (opening, seconds), started)
        finally:
            _end(process)
        if told.failed:
            errors.seek(max(0, errors.seek(0, os.SEEK_END) - 4000))
            said = [line for line in errors.read().decode(errors="replace").splitlines() if line.strip()]
            told.failed += f": {said[-1][:300]}" if said else ""
    return told


def _followed(
    process: subprocess.Popen[bytes], job: dict[str, Any], limits: tuple[float, float], started: float
) -> Told:
    assert process.stdin is not None and process.stdout is not None, "they are pipes"
    lines: queue.Queue[bytes] = queue.Queue()
    threading.Thread(target=_read, args=(process.stdout, lines), daemon=True).start()
    with contextlib.suppress(BrokenPipeError):  # it ended before it read; what it said follows
        process.stdin.write(json.dumps(job).encode())
        process.stdin.close()
    told, column, limit = Told(), "", limits[0]
    while True:
        try:
            line = lines.get(timeout=limit)
        except queue.Empty:
            told.cut = column
            told.failed = "" if column else f"nothing within {limit:.0f} s"
            return told
        if not line:
            told.failed = f"ended with status {process.wait()}" + (f" in {column}" if column else "")
            return told
        found = json.loads(line)
        if "done" in found:
            told.version = found["version"]
            return told
        if "first" in found:
            told.first = found["first"] - started
        elif "begin" in found:
            column, limit = found["begin"], limits[1]
        else:
            told.figures[found.pop("column")] = found


def _read(pipe: Any, lines: queue.Queue[bytes]) -> None:
    with pipe:
        for line in pipe:
            lines.put(line)
    lines.put(b"")


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert process.stdin is not None, "it is a pipe"
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
