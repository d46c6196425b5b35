"""When Python waited, and for what: notes that a run takes of its reads.

In: reads of values. Out: who read, which operations, from when to when (seconds of `time.monotonic`), for EXPLAIN.
"""

from __future__ import annotations

import asyncio
import threading
from typing import NamedTuple

Actor = tuple[int, int]  # a thread, and the task in it (0: none)


class Reading(NamedTuple):
    """One read: `ops` are the operations whose values it needed, `what` says what it was where it was none of them."""

    actor: Actor
    ops: tuple[str, ...]
    began: float
    ended: float
    what: str = ""


def actor() -> Actor:
    """Who runs now. What one actor records after a read may depend on what it has read."""
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no loop runs in this thread
        task = None
    return threading.get_ident(), id(task) if task is not None else 0
