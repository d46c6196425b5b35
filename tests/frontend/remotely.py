"""Servers that say what a test tells them to: for what a real one does only when it is broken, slow or foreign."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, dict[str, str], bytes | Iterable[bytes]]
Handler = Callable[[Any], Answer]


class Peer:
    """A server on a free port. `answers` are per path, what is not there is a 404. `asked` are the bodies by path, in
    order; `headers` those of the last request."""

    def __init__(self, answers: dict[str, Handler]) -> None:
        self.asked: list[tuple[str, Any]] = []
        self.headers: dict[str, str] = {}
        peer = self

        class Requests(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.answer(None)

            def do_POST(self) -> None:
                self.answer(json.loads(self.rfile.read(int(self.headers["Content-Length"])) or "null"))

            def answer(self, body: Any) -> None:
                peer.asked.append((self.path, body))
                peer.headers = dict(self.headers)
                handler = answers.get(self.path, lambda _: (404, {}, b"{}"))
                status, headers, content = handler(body)
                pieces = [content] if isinstance(content, bytes) else content
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Connection", "close")
                self.end_headers()
                self.close_connection = True
                with contextlib.suppress(OSError):
                    for piece in pieces:
                        self.wfile.write(piece)
                        self.wfile.flush()

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Requests)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def to(self, path: str) -> list[Any]:
        """The bodies sent to `path`."""
        return [body for at, body in self.asked if at == path]

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def said(value: Any, status: int = 200, **headers: str) -> Handler:
    """Always the same JSON."""
    return lambda _: (
        status,
        {name.replace("_", "-"): text for name, text in headers.items()},
        json.dumps(value).encode(),
    )


def streamed(*events: Any, done: bool = True) -> Handler:
    """Server-sent events."""
    frames = [f"data: {json.dumps(event, ensure_ascii=False)}\n\n".encode() for event in events]
    return lambda _: (200, {"Content-Type": "text/event-stream"}, [*frames, *([b"data: [DONE]\n\n"] if done else [])])


def first(*handlers: Handler) -> Handler:
    """One answer after the other; the last one stays."""
    left = list(handlers)
    return lambda body: (left.pop(0) if len(left) > 1 else left[0])(body)


@contextlib.contextmanager
def silent() -> Iterator[str]:
    """The URL of a server that takes connections and never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def closed_url() -> str:
    """A URL where nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"
