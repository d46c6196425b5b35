"""`make bench` on a small random model: it runs, and its JSON has what its table has. No timing is asserted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent.parent / "benchmarks" / "first.py"


@pytest.mark.model
def test_the_first_table(tmp_path):
    out = tmp_path / "results" / "first.json"
    command = [sys.executable, "-P", str(SCRIPT), "--model", "random:tiny", "--threads", "1", "--repeats", "1"]
    done = subprocess.run(
        [*command, "--out", str(out)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text(encoding="utf-8"))
    assert [row["batch"] for row in result["rows"]] == [1, 8, 32]
    assert all(row["decode tok/s"] > 0 and row["prefill tok/s"] > 0 for row in result["rows"])
    assert result["demo"]["steps"] > 1
    assert result["demo"]["computed tokens"] > 1
    assert "prefill tok/s" in done.stdout
