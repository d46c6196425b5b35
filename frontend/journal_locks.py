"""Who carries out which run: one process at a time.

In: the number of a run. Out: it is held, or `JournalHeld`. A run is a byte of a file beside the journal, locked by its
process (POSIX record locks): the system lets go of it when the process ends, however it ends, and forked children do
not have it.
"""

from __future__ import annotations

import errno
import fcntl
import os

from ramet.frontend.errors import JournalError, JournalHeld


class RunLocks:
    """The runs of one journal that this process holds. One object per file and process, since closing any descriptor of
    the file drops all of the process's locks on it."""

    def __init__(self, journal: str) -> None:
        self._path = f"{journal}-lock"
        self._held: set[int] = set()
        self._over: set[int] = set()  # of these, runs that have ended, and a host call of which has not
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            self._file = os.open(self._path, flags, 0o600)
        except OSError as error:
            raise JournalError(f"{self._path}: {error.strerror}") from error

    def hold(self, number: int, run: str) -> None:
        """Take a run. Raises `JournalHeld` when it is taken."""
        held = f"run {run} is under way: wait for it, or end the process that runs it"
        if number in self._held:
            error = JournalHeld(f"{held} (it is this one)")
            error.over = number in self._over
            raise error
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise JournalHeld(held) from None
            raise JournalError(f"{self._path}: cannot be locked: {error.strerror}; use a local disk") from error
        self._held.add(number)

    def ending(self, number: int) -> None:
        """A run has ended; it is held until its host calls have."""
        self._over.add(number)

    def drop(self, number: int) -> None:
        """Let go of a run."""
        self._held.discard(number)
        self._over.discard(number)
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, number)

    def close(self) -> None:
        """Let go of everything."""
        os.close(self._file)
