"""The same programs against a server that speaks SGLang's `/generate`, one request per call.

In: a URL. Out: a `Backend` that drives programs as `ramet.Endpoint` drives servers that are not ramet's: the requests
that SGLang's own frontend would send, with branches as tasks of one event loop in place of threads.
"""

from __future__ import annotations

from ramet.frontend.backends.base import Deliver, Session
from ramet.frontend.backends.http import connected
from ramet.frontend.backends.loop import Loop
from ramet.frontend.backends.remote import RemoteProgram
from ramet.frontend.backends.sglang import GenerateRemote
from ramet.frontend.ir import Header


class Slashed:
    """See the module."""

    def __init__(self, url: str) -> None:
        self._loop = Loop(f"/generate of {url}")
        self._http = self._loop.run(connected(self._loop, url, {}, 600.0, 0))
        self._remote = GenerateRemote(self._http)

    def open(self, header: Header, deliver: Deliver) -> Session:
        """See `Backend.open`."""
        return RemoteProgram(self._loop, self._remote, header, deliver)

    def info(self) -> dict[str, object]:
        """What the server says of itself."""
        found = self._loop.run(self._http.json("GET", "/server_info"))
        assert isinstance(found, dict), "an object"
        return found

    def flush_cache(self) -> bool:
        """Ask the server to forget."""
        self._loop.run(self._http.json("POST", "/flush_cache", {}))
        return True

    def close(self) -> None:
        """End what runs."""
        self._loop.close()
