"""What the chip itself can do. In: nothing. Out: copy bandwidth and the bfloat16 matrix rate."""

from __future__ import annotations

from gpu_parts.floors import Limits
from gpu_parts.report import Row
from gpu_parts.session import Session


def run(session: Session) -> None:
    """A copy far larger than the cache, and a product that fills the chip; on random data."""
    place, toy = session.place, session.scale.toy
    source = place.random((1 << 10) if toy else (1 << 28))  # half a gigabyte of bfloat16
    target = place.random(len(source))
    ms = place.median_ms([lambda: target.copy_(source)], repeats=10)
    bandwidth = 2 * source.nbytes / ms * 1e3
    size = 64 if toy else 8192
    a, b = place.random(size, size), place.random(size, size)
    ms = place.median_ms([lambda: a @ b], repeats=3)
    rate = 2 * size**3 / ms * 1e3
    session.limits = Limits(bandwidth, rate)
    note = "read and written, 0.5 GiB, device to device"
    session.add(Row("limits", "copy bandwidth", bandwidth / 1e12, "TB/s", note=note))
    session.add(Row("limits", f"{place.dtype} product, {size} cubed", rate / 1e12, "TFLOP/s"))
