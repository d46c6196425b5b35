"""A headless Chromium for tests, spoken to over the DevTools protocol."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.sync.client import ClientConnection, connect

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--mute-audio")
QUIET = (
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--disable-quic",
)
WAIT = 30.0  # seconds until what should happen in a page has to have happened


class Tab:
    """One page."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._serial = 0
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, **params: Any) -> Any:
        """One command of the protocol, and its result; events that come meanwhile are kept."""
        self._serial += 1
        self._socket.send(json.dumps({"id": self._serial, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv(timeout=WAIT))
            if message.get("id") == self._serial:
                assert "error" not in message, message
                return message["result"]
            self.events.append(message)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression; a promise is awaited."""
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, condition: str) -> Any:
        """Wait until an expression is true in the page; its value."""
        script = f"""new Promise((found, failed) => {{
            const ends = performance.now() + {1000 * WAIT - 5000}
            const look = () => {{
                const value = (() => {condition})()
                if (value) found(value)
                else if (performance.now() > ends) failed(new Error("never came"))
                else setTimeout(look, 20)
            }}
            look()
        }})"""
        return self.run(script)

    def open(self, url: str) -> None:
        """Load a page."""
        self.call("Page.enable")
        self.call("Runtime.enable")
        self.call("Log.enable")
        self.call("Page.navigate", url=url)
        self.until('document.readyState === "complete"')

    def look(self, width: int, height: int, *, dark: bool = False, phone: bool = False) -> None:
        """Give the page a size and a colour scheme."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def picture(self, whole: bool = False) -> bytes:
        """A PNG of what is in sight, or of the whole page."""
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        return base64.b64decode(shot["data"])

    def complaints(self) -> list[str]:
        """Exceptions, and what the browser logged as errors or warnings: blocked by the policy, not loaded, ..."""
        self.run("1")
        found = [
            event["params"]["exceptionDetails"]["text"]
            for event in self.events
            if event["method"] == "Runtime.exceptionThrown"
        ]
        entries = [event["params"]["entry"] for event in self.events if event["method"] == "Log.entryAdded"]
        return found + [entry["text"] for entry in entries if entry["level"] in ("error", "warning")]


@contextlib.contextmanager
def browser() -> Iterator[Tab]:
    """A page of a fresh browser. Skips the test where there is no Chromium."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("needs Chromium (Debian: apt-get install chromium)")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [path, *FLAGS, *QUIET, "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        try:
            with connect(_target(process, Path(profile)), max_size=1 << 26, open_timeout=WAIT) as socket:
                yield Tab(socket)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if process.stderr is not None:
                process.stderr.close()


def _target(process: subprocess.Popen[str], profile: Path) -> str:
    """The address of the first page's socket, once the browser says that it listens."""
    assert process.stderr is not None
    for line in process.stderr:
        if "DevTools listening on ws://" in line:
            port = line.split("ws://")[1].split("/")[0]
            pages = [t for t in httpx.get(f"http://{port}/json/list", timeout=WAIT).json() if t["type"] == "page"]
            return str(pages[0]["webSocketDebuggerUrl"])
    raise AssertionError("Chromium ended before it listened")
