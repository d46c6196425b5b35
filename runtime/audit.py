"""The engine's own look at its invariants while it serves.

In: after each step, how many there were and whether there is nothing to do. Out: counts, and a line in the log for each
kind of invariant that is broken; whoever watches the metrics knows before an answer is wrong. Looking costs as much as
a step or two: it happens when the engine has nothing to do, and rarely under a load that never ends.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

LOG = logging.getLogger("ramet.engine")
BUSY_STEPS = 20_000  # between two looks under load: some minutes
IDLE_STEPS = 1_000  # before a look when there is nothing to do
MOST_TOLD = 16  # different lines in the log


class Audit:
    """Calls `check`, which raises AssertionError. `checks`: how often; `broken`: how often it raised."""

    def __init__(self, check: Callable[[], None]) -> None:
        self._check = check
        self._last = 0
        self._told: set[str] = set()
        self.checks = self.broken = 0

    def after(self, steps: int, idle: bool) -> None:
        """The engine has made `steps` steps; `idle`: nothing is under way. Never raises: who is served stays served."""
        if steps - self._last < (IDLE_STEPS if idle else BUSY_STEPS):
            return
        self._last = steps
        self.checks += 1
        try:
            self._check()
        except AssertionError as error:
            self.broken += 1
            words = str(error) or "it says no more"
            if words not in self._told and len(self._told) < MOST_TOLD:
                self._told.add(words)
                LOG.error("an invariant of the engine is broken (please report it; a restart helps): %s", words)
