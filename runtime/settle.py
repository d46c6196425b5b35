"""A process that has started and will serve from now on: what would make it pause is put out of the way.

In: nothing. Out: the interpreter's own settings, for this process. Only a process that is ramet's own calls this, never
one in which somebody's program runs.
"""

from __future__ import annotations

import ctypes
import gc
import sys

LARGE = 256 << 10  # bytes of a block that goes back to the system when it is freed
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
SWITCH_SECONDS = 0.001  # that another thread keeps the interpreter while the one that serves waits for it


def settle(*, collect: bool = True) -> None:
    """Leave everything that was made so far out of the garbage collector's walks: a full one over modules and
    vocabularies takes 20 ms in an engine and 60 ms in a server (CPU time, measured), in which all streams stand still.
    What comes later is small and walked as ever, also where the collector was off till now. Threads that compute beside
    the loop give way sooner. Without `collect` the garbage of the start stays, too: an engine's is 700 objects, and to
    find them takes it 15 ms before its first token. Large blocks go back (`give_back`), but where torch computes."""
    if collect:
        gc.collect()
    gc.freeze()
    gc.enable()
    sys.setswitchinterval(SWITCH_SECONDS)
    if "torch" not in sys.modules:
        give_back()


def give_back(at_least: int = LARGE) -> bool:
    """Have the C library return to the system every block of `at_least` bytes as soon as it is freed, and what is free
    at the end of a heap once it is so much; False where it cannot be told (it is not glibc).

    Left to itself glibc learns from the first large blocks that come and go to keep up to 32 MiB of one, and 64 MiB at
    the end of each thread's heap: every burst leaves its height behind. The tables of constraints, which come and go in
    an engine, leave holes among which its memory grows for hours. A server's does because asyncio receives into a block
    of 256 KiB and cuts off what it did not fill: what is kept for the time of a request stands where the next block
    wants to be. Each block that is given back costs fresh pages (some 0.08 ms of CPU a request): not for processes
    whose every step asks for some, as torch's operations on a CPU do."""
    if sys.platform != "linux":
        return False
    told = getattr(ctypes.CDLL(None), "mallopt", None)
    return told is not None and all(told(name, at_least) == 1 for name in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD))
