"""The modules of `benchmarks/reliability.py`, for its tests."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPT = ROOT / "benchmarks" / "reliability.py"
NAMES = (
    "board",
    "catalog",
    "crowds",
    "faults",
    "grammars",
    "hostile",
    "nonsense",
    "page",
    "place",
    "soak",
    "suites",
    "tenants",
    "wire",
)
KEYS = (
    *("storm", "overload", "overcommit", "kill", "stop", "drain", "fuzz", "bombs", "soak", "fair", "probes", "steps"),
    "anomalies",
)


@contextlib.contextmanager
def scoreboard() -> Iterator[SimpleNamespace]:
    """The script (`main`) and its modules, found as the script finds them."""
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        found = {name: importlib.import_module(f"reliability_parts.{name}") for name in NAMES}
        yield SimpleNamespace(main=importlib.import_module("reliability"), **found)
    finally:
        sys.path.remove(str(SCRIPT.parent))
