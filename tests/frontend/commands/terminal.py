"""A process on a terminal of its own, as a person would drive it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from types import TracebackType

WAIT = 60.0  # seconds until a test gives up on what hangs
_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """`ramet` with `arguments` on a new terminal; `shown` is all that it has written, without the terminal's codes."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        self._main, inner = pty.openpty()
        fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("OPENAI_", "RAMET_API"))}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "ramet", *arguments],
            stdin=inner,
            stdout=inner,
            stderr=inner,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY),
            env={**inherited, "TERM": "xterm", "NO_COLOR": "1", "COLUMNS": "100", **environment},
        )
        os.close(inner)
        self._bytes = b""
        self._seen = 0

    @property
    def raw(self) -> str:
        """Everything, with the terminal's codes."""
        return self._bytes.decode("utf-8", "replace")

    @property
    def shown(self) -> str:
        """Everything, without them."""
        return _CODES.sub("", self.raw).replace("\r", "")

    def until(self, text: str) -> str:
        """Wait for `text` in what is shown from where the last call ended; what was shown before it."""
        before = self._within(text, WAIT)
        assert before is not None, f"{text!r} did not come: {self.shown[self._seen :]!r}"
        return before

    def interrupt(self, text: str) -> None:
        """Press Ctrl-C until `text` is shown. One press is enough, except in the microseconds before a process waits
        for keys: Python sees that one only when the wait is over."""
        for _ in range(4):
            self._idle()
            self.type("\x03")
            if self._within(text, WAIT / 4) is not None:
                return
        raise AssertionError(f"{text!r} did not come: {self.shown[self._seen :]!r}")

    def _idle(self) -> None:
        """Wait until the main thread sleeps, where the system says so."""
        state = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/stat")
        deadline = time.monotonic() + WAIT
        while state.exists() and time.monotonic() < deadline:
            if state.read_text().rpartition(")")[2].split()[0] == "S":
                return
            os.sched_yield()

    def _within(self, text: str, seconds: float) -> str | None:
        deadline = time.monotonic() + seconds
        while (at := self.shown.find(text, self._seen)) < 0:
            if not self._read(deadline):
                return None
        before, self._seen = self.shown[self._seen : at], at + len(text)
        return before

    def _read(self, deadline: float) -> bool:
        """More output, unless there is none before the deadline or ever."""
        ready, _, _ = select.select([self._main], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return False
        try:
            piece = os.read(self._main, 65536)
        except OSError:  # the other end was closed
            return False
        self._bytes += piece
        return bool(piece)

    def type(self, text: str) -> None:
        """Press these keys; "\\x03" is Ctrl-C, "\\x04" Ctrl-D."""
        os.write(self._main, text.encode())

    def ended(self) -> int:
        """Wait for the process; its exit status."""
        deadline = time.monotonic() + WAIT
        while self._read(deadline):
            pass
        return self._process.wait(WAIT)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait(WAIT)
        os.close(self._main)
