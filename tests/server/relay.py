"""A relay in front of a server: counts requests, and cuts connections where a test says."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from urllib.parse import urlsplit

_REQUEST = re.compile(rb"(GET|POST|DELETE) (/\S*) HTTP/1\.1\r\n")
CHUNK = 65536


class Relay:
    """A free port whose connections lead to `url`. `asked` are the requests (method and path) in order.

    `cut(path, after)`: the next connection on which `path` is asked for is reset once `after` bytes of its answer (0:
    none, as soon as the request has been handed on) have come through. `cuts` counts how often that was done."""

    def __init__(self, url: str) -> None:
        where = urlsplit(url)
        self._target = (where.hostname, where.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.asked: list[tuple[str, str]] = []
        self.cuts = 0
        self._wanted: list[tuple[str, int]] = []
        self._open: list[socket.socket] = []
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self, path: str, after: int, times: int = 1) -> None:
        """See the class."""
        with self._lock:
            self._wanted += [(path, after)] * times

    def to(self, path: str) -> int:
        """How often `path` was asked for."""
        return sum(target == path for _, target in self.asked)

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        for each in list(self._open):
            _shut(each)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._target)  # type: ignore[arg-type]
                self._open += [client, server]
                _Line(self, client, server).start()

    def noticed(self, method: str, path: str) -> int | None:
        """A request passes: after how many bytes of its answer it is to be cut."""
        with self._lock:
            self.asked.append((method, path))
            found = next((each for each in self._wanted if each[0] == path), None)
            if found is None:
                return None
            self._wanted.remove(found)
            return found[1]


class _Line:
    """One connection through the relay."""

    def __init__(self, relay: Relay, client: socket.socket, server: socket.socket) -> None:
        self._relay, self._client, self._server = relay, client, server
        self._left: int | None = None

    def start(self) -> None:
        for work in (self._up, self._down):
            threading.Thread(target=work, daemon=True).start()

    def _up(self) -> None:
        with contextlib.suppress(OSError):
            while data := self._client.recv(CHUNK):
                for method, path in _REQUEST.findall(data):
                    self._left = self._relay.noticed(method.decode(), path.decode())
                self._server.sendall(data)
        _shut(self._server)

    def _down(self) -> None:
        with contextlib.suppress(OSError):
            while data := self._server.recv(CHUNK):
                if self._left is not None:
                    data, self._left = data[: self._left], self._left - len(data)
                    if self._left <= 0:
                        self._client.sendall(data)
                        self._relay.cuts += 1
                        break
                self._client.sendall(data)
        _shut(self._client)
        _shut(self._server)


def _shut(each: socket.socket) -> None:
    with contextlib.suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)
    each.close()
