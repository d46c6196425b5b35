"""Every endpoint of our own OpenAPI description under schemathesis: 2,000 cases and more, no 5xx. `make clients`."""

from __future__ import annotations

import json
import os
import subprocess
from collections import Counter
from pathlib import Path

import httpx
import pytest

from .conftest import served
from .venvs import interpreter

pytestmark = pytest.mark.clients
CHECKS = Path(__file__).resolve().parent / "scripts" / "schemathesis_checks.py"
SECONDS = 600.0
CASES = 2000
EACH = 20  # cases of one operation's fuzzing, at most
SMALL = (
    "--dtype",
    "float32",
    "--threads",
    "1",
    "--kv-tokens",
    "4096",
    "--context",
    "128",
)  # what is valid is soon done


def test_two_thousand_cases(tmp_path: Path):
    python = interpreter("schemathesis")
    report = tmp_path / "cases.ndjson"
    with served("random:tiny", *SMALL, "--served-model-name", "tiny") as url:
        command = [
            str(python.parent / "schemathesis"),
            "run",
            f"{url}/openapi.json",
            *("--checks", "answered"),
            *("--phases", "examples,coverage,fuzzing"),
            *("--max-examples", str(EACH)),
            *("--seed", "1"),
            *("--request-timeout", "20"),
            *("--workers", "1"),
            *("--report-ndjson-path", str(report)),
            *("--generation-database", "none"),
            "--no-shrink",
            "--continue-on-failure",
            "--no-color",
        ]
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "PYTHONSAFEPATH": "1",
            "SCHEMATHESIS_HOOKS": str(CHECKS),
        }
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=SECONDS,
            env=environment,
            cwd=tmp_path,
            check=False,
        )
        assert httpx.get(f"{url}/health_generate", timeout=20).status_code == 200
        info = httpx.get(f"{url}/server_info", timeout=20).json()
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert (info["programs"], info["waiting"], info["kv"]["used"], info["restarts"]) == (0, 0, 0, 0)
    statuses = counted(report)
    assert sum(statuses.values()) >= CASES, statuses
    assert statuses[200] >= CASES // 20, statuses
    assert statuses[400] >= CASES // 20, statuses


def counted(report: Path) -> Counter[int]:
    """Answers by status, from schemathesis's own record of them."""
    statuses: Counter[int] = Counter()
    for line in report.read_text(encoding="utf-8").splitlines():
        count(json.loads(line), statuses)
    return statuses


def count(value: object, statuses: Counter[int]) -> None:
    """Add what is a response anywhere in `value`."""
    parts = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    if isinstance(value, dict) and isinstance(value.get("status_code"), int):
        statuses[value["status_code"]] += 1
    for part in parts:
        count(part, statuses)
