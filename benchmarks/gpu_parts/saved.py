"""What one process of a run leaves to the next. In: a report and what was known when it was written. Out: a file.

A kernel that reads where it must not takes its whole process along, and one that never ends holds it for good: so a run
is several processes, one after the other, and what they found lies in a file after every figure.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from gpu_parts.report import Outcome, Row


@dataclass(slots=True)
class Saved:
    """`limits`: bandwidth and rate, as in `floors.Limits`; `known`: as in `Session`; `running`: the section that had
    begun, and when (of time.monotonic, which all processes of a machine share); `over`: no section is left."""

    facts: dict[str, Any] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    limits: tuple[float, float] = (float("nan"), float("nan"))
    known: dict[str, float] = field(default_factory=dict)
    running: tuple[str, float] | None = None
    over: bool = False

    def write(self, path: Path) -> None:
        """Whole, or not at all."""
        part = path.with_suffix(".part")
        part.write_bytes(msgspec.msgpack.encode(self, enc_hook=float))  # NumPy's numbers
        part.replace(path)


def read(path: Path) -> Saved | None:
    """None where no process came so far."""
    return msgspec.msgpack.decode(path.read_bytes(), type=Saved) if path.exists() else None
