"""`benchmarks/scheduler.py` at a small size: it runs, its JSON has what its table has. No timing is asserted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parent.parent.parent / "benchmarks" / "scheduler.py"
SMALL = ("--sequences", "1", "8", "--context", "32", "--steps", "8", "--waiting", "20")


def _run(*options: str) -> str:
    done = subprocess.run(
        [sys.executable, "-P", str(SCRIPT), *SMALL, *options],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_as_json():
    result = json.loads(_run("--json"))
    assert [(row["workload"], row["sequences"]) for row in result["rows"]] == [
        (workload, count) for workload in ("apart", "forks", "churn") for count in (1, 8)
    ]
    for row in result["rows"]:
        assert row["plan"] > 0
        assert row["collect"] > 0
        assert row["engine"] == row["plan"] + row["masks"] + row["collect"]
    assert len(result["acts"]) == 5
    assert all(cost > 0 for cost in result["acts"].values())


def test_as_a_table():
    out = _run()
    assert "workload" in out
    assert "20 waiting" in out
