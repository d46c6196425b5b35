"""What the chip itself can do. In: nothing. Out: copy bandwidth and the bfloat16 matrix rate."""

from __future__ import annotations

import shutil
import subprocess
import time

from gpu_parts.floors import Limits
from gpu_parts.report import Row
from gpu_parts.session import Session

WARM = 0.5  # seconds of work until the clocks are those of work


def run(session: Session) -> None:
    """A copy far larger than the cache, and a product that fills the chip; on random data."""
    place, toy = session.place, session.scale.toy
    size = 64 if toy else 8192
    a, b = place.random(size, size), place.random(size, size)
    began = time.monotonic()
    while time.monotonic() - began < WARM and not toy:
        place.wall_ms(lambda: a @ b, repeats=10)
    source = place.random((1 << 10) if toy else (1 << 28))  # half a gigabyte of bfloat16
    target = place.random(len(source))
    ms = place.median_ms([lambda: target.copy_(source)], repeats=10)
    bandwidth = 2 * source.nbytes / ms * 1e3
    ms = place.median_ms([lambda: a @ b], repeats=5)
    rate = 2 * size**3 / ms * 1e3
    session.limits = Limits(bandwidth, rate)
    note = "read and written, 0.5 GiB, device to device"
    session.add(Row("limits", "copy bandwidth", bandwidth / 1e12, "TB/s", note=note))
    session.add(
        Row("limits", f"{place.dtype} product, {size} cubed", rate / 1e12, "TFLOP/s", note="" if toy else clocks())
    )


def clocks() -> str:
    """What the driver says of the chip right now."""
    asked = "clocks.sm,clocks.mem,power.draw,temperature.gpu"
    if shutil.which("nvidia-smi") is None:
        return ""
    command = ["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    return f"then {asked}: {done.stdout.strip()}"
