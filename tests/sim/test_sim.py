"""The command line of the simulation: figures, exit status, and a failure's own command that repeats it."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = "tests/sim/sim.py"


def ran(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The script in a process of its own."""
    command = [sys.executable, "-P", SCRIPT, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def test_a_campaign_says_what_it_did() -> None:
    done = ran("--steps", "300", "--rounds", "0", "--workers", "1", "--seed", "5")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 failed" in done.stdout
    assert "leaked slots: 0" in done.stdout


def test_a_failure_is_repeated_by_the_command_that_it_names() -> None:
    first = ran("--scene", "tiny pool", "--seed", "3", "--mutation", "an eviction ignores locks")
    assert first.returncode == 1, first.stdout + first.stderr
    named = next(line for line in first.stdout.splitlines() if "again: " in line)
    python, flag, script, *again = shlex.split(named.partition("again: ")[2])
    assert (python, flag, script) == (".venv/bin/python", "-P", SCRIPT)
    second = ran(*again)
    failures = [next(line for line in run.stdout.splitlines() if "FAILED" in line) for run in (first, second)]
    assert failures[0] == failures[1]
