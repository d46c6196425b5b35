"""What stands in front of a backend and changes one thing about it.

In: a backend. Out: the same, program by program and answer by answer; who overrides `open` sees what passes.
"""

from __future__ import annotations

from ramet.frontend.backends.base import Backend, Deliver, Session
from ramet.frontend.ir import Header


class Through:
    """A backend that hands everything on to `backend`."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    def open(self, header: Header, deliver: Deliver) -> Session:
        """See `Backend.open`."""
        return self.backend.open(header, deliver)

    def info(self) -> dict[str, object]:
        """What the backend behind says."""
        return self.backend.info()

    def flush_cache(self) -> bool:
        """The cache of the backend behind."""
        return self.backend.flush_cache()

    def close(self) -> None:
        """Close the backend behind."""
        self.backend.close()
