"""The benchmark of constraints runs, and its counts are what jumps promise; its times are not looked at."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "structured.py"
SMALL = (
    "--model",
    "random:tiny",
    "--threads",
    "1",
    "--batch",
    "3",
    "--tokens",
    "4",
    "--repeats",
    "1",
    "--schemas",
    "2",
)


def test_forced_text_costs_fewer_steps() -> None:
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, "-P", str(BENCHMARK), *SMALL, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True, env=environment)
    found = json.loads(done.stdout)
    steps = {row["case"]: row["steps off/canonical"] for row in found["steps"]}
    assert steps["free chat"] == 1
    assert min(steps["character JSON"], steps["tool call"], steps["invoice"]) > 1
    assert all(row["steps off/exact"] >= 1 for row in found["steps"])
    assert found["masks"]["masks"] > 10 and found["compilations"]["schemas"] == 2
    assert [row["load"] for row in found["load"]] == ["free", "regex", "JSON"] and found["load"][0]["batch"] == 3
