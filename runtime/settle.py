"""A process that has started and will serve from now on: what would make it pause is put out of the way.

In: nothing. Out: settings of the interpreter and of the C library for this process, and a thread that trims its heaps.
Only a process that is ramet's own calls this, never one in which somebody's program runs.
"""

from __future__ import annotations

import ctypes
import gc
import sys
import threading
from types import TracebackType

LARGE = 256 << 10  # bytes of a block that goes back to the system when it is freed
PR_SET_NAME = 15  # of prctl.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
TRIM_SECONDS = 60.0  # between two looks for free memory inside heaps
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


def trim() -> bool:
    """Return to the system whatever is free inside the heaps of all threads; False where nothing was, or it cannot be
    told. With nothing to return it takes some 0.3 ms, without the interpreter's lock."""
    if sys.platform != "linux":
        return False
    told = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return told is not None and told(ctypes.c_size_t(LARGE)) == 1


class Trimming:
    """While this is entered, `trim` runs every `seconds` in a thread of its own, but where torch computes.

    A heap gives back its free end (`give_back`) and nothing below: a table of a constraint that stays, small as it may
    be, keeps all that was free beneath it when it was made. An hour of mixed load left 2.2 MiB of an engine so."""

    def __init__(self, seconds: float = TRIM_SECONDS) -> None:
        self._seconds = seconds
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ramet-trim", daemon=True)

    def __enter__(self) -> None:
        if "torch" not in sys.modules:
            self._thread.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        if sys.platform == "linux":  # as `top -H` shows it
            ctypes.CDLL(None).prctl(PR_SET_NAME, threading.current_thread().name.encode(), 0, 0, 0)
        while not self._over.wait(self._seconds):
            trim()
