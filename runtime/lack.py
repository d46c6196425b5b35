"""For how long admission has been shut because KV memory was lacking.

In: after each plan, whether somebody was kept out for that reason. Out: seconds in all, so that a call's share is a
difference of two readings. Times are the clock's.
"""

from __future__ import annotations


class Lack:
    """A stopwatch that runs while somebody is kept out."""

    __slots__ = ("_seconds", "_since")

    def __init__(self) -> None:
        self._seconds = 0.0
        self._since: float | None = None

    def note(self, shut: bool, now: float) -> None:
        """Admission is, or is not, shut from `now` on."""
        if self._since is not None:
            self._seconds += now - self._since
        self._since = now if shut else None

    def total(self, now: float) -> float:
        """Seconds until `now`."""
        return self._seconds + (now - self._since if self._since is not None else 0.0)
