"""Which thread runs on which core. In: the cores of this process. Out: threads that stay where they were put.

Unpinned, two threads of one pool can share a core while another is idle, which costs a factor that no figure shows.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_TASKS = Path("/proc/self/task")


def can_pin() -> bool:
    """Whether this system lets us."""
    return hasattr(os, "sched_setaffinity") and _TASKS.is_dir()


def place(thread: int, core: int) -> None:
    """Pin a thread (0: the calling one) to a core."""
    os.sched_setaffinity(thread, {core})


def threads() -> set[int]:
    """Ids of this process's threads."""
    return {int(task.name) for task in _TASKS.iterdir()}


@contextmanager
def pinned(wanted: bool) -> Iterator[Sequence[int]]:
    """The calling thread on the first of this process's cores, and all its cores; it is free again afterwards. Not
    `wanted`, or not to be had: no cores."""
    if not (wanted and can_pin()):
        yield ()
        return
    before = os.sched_getaffinity(0)
    cores = sorted(before)
    place(0, cores[0])
    try:
        yield cores
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def workers(cores: Sequence[int]) -> Iterator[None]:
    """Threads that start meanwhile, on the cores after the first, which has the caller."""
    before = threads() if cores else set()
    yield
    for number, thread in enumerate(sorted(threads() - before) if cores else ()):
        place(thread, cores[(number + 1) % len(cores)])
