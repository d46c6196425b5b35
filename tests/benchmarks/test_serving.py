"""`benchmarks/serving.py` at a small size: it runs, its JSON has what its table has. No timing is asserted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.model
SCRIPT = Path(__file__).resolve().parent.parent.parent / "benchmarks" / "serving.py"
SMALL = ("--model", "random:tiny", "--threads", "1", "--batches", "1", "3", "--tokens", "8", "--repeats", "1")


def _run(*options: str) -> str:
    done = subprocess.run(
        [sys.executable, "-P", str(SCRIPT), *SMALL, "--long", "6000", *options],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_as_json():
    result = json.loads(_run("--json"))
    assert [row["batch"] for row in result["throughput"]] == [1, 3]
    for row in (*result["throughput"], result["first token"]):
        assert all(value > 0 for value in row.values())
    assert all(value >= 0 for value in result["pauses"].values())  # a short answer may come in one piece


def test_as_a_table():
    out = _run()
    assert "tok/s" in out
    assert "6000 bytes" in out
