"""The compiling process seen from outside: started, asked, and ended when it takes too long.

In: a `Hello`, then constraints as msgpack. Out: `Done` or `Refused`; `Lost` says why there is no answer.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time

import msgspec

from ramet.frontend.errors import EngineError
from ramet.runtime.grammar.child import Done, Ready, Refused, Reply, framed

START_SECONDS = 60.0  # for a machine that is very busy; measured 0.3 s
MOST_REPLY = 16 << 20
_REPLIES: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Ready | Done | Refused)


class Lost(Exception):
    """No answer came: the time was up (`signal` is 0) or the process ended, by `signal` where it is known."""

    def __init__(self, signal: int) -> None:
        super().__init__(f"signal {signal}")
        self.signal = signal


class Worker:
    """One compiling process. Used by one thread at a time; its standard error is ours until it is ready."""

    def __init__(self, hello: bytes) -> None:
        self._owner = os.getpid()
        self._hello: bytes | None = hello
        self._killed = False
        # numpy's threads would take address space, which is limited
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "ramet.runtime.grammar.child", str(self._owner)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
                start_new_session=True,
                bufsize=0,
            )
        except OSError as error:
            raise EngineError(f"the process that compiles grammars cannot be started: {error}") from error
        if self._process.stdin is None or self._process.stdout is None:
            raise EngineError("the process that compiles grammars has no pipes")
        self._in, self._out = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._in, False)
        os.set_blocking(self._out, False)

    @property
    def pid(self) -> int:
        """The id of the process."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process still runs. False once it was killed."""
        return not self._killed and self._process.poll() is None

    def wait_ready(self) -> None:
        """Give it the vocabulary, once. Raises `EngineError` when it cannot work."""
        if self._hello is None:
            return
        try:
            reply = self._exchange(self._hello, time.monotonic() + START_SECONDS)
        except Lost as lost:
            raise EngineError(f"the process that compiles grammars did not start ({lost})") from None
        if isinstance(reply, Refused):
            raise EngineError(f"the process that compiles grammars cannot work: {reply.message}")
        self._hello = None

    def ask(self, constraint: bytes, seconds: float) -> Done | Refused:
        """Have one constraint compiled. Raises `Lost`; the worker must be ended then."""
        reply = self._exchange(constraint, time.monotonic() + seconds)
        if isinstance(reply, Ready):
            raise Lost(0)
        return reply

    def kill(self) -> None:
        """End the process at once. May be called by any thread; a process forked from the owner leaves it alone."""
        self._killed = True
        if os.getpid() == self._owner:
            with contextlib.suppress(OSError):
                self._process.kill()

    def end(self) -> None:
        """Kill the process and let go of everything. Nobody may be using it."""
        if os.getpid() != self._owner:
            return
        self.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def _exchange(self, message: bytes, deadline: float) -> Reply:
        try:
            self._send(framed(message), deadline)
            size = int.from_bytes(self._receive(4, deadline), "little")
            if size > MOST_REPLY:
                raise Lost(0)
            return _REPLIES.decode(self._receive(size, deadline))
        except (OSError, ValueError, msgspec.MsgspecError) as error:  # ended by another thread, or broken
            raise Lost(self._signal()) from error

    def _send(self, data: bytes, deadline: float) -> None:
        left = memoryview(data)
        while left:
            _wait(self._in, select.POLLOUT, deadline)
            left = left[os.write(self._in, left[: 1 << 16]) :]

    def _receive(self, count: int, deadline: float) -> bytes:
        data = bytearray()
        while len(data) < count:
            _wait(self._out, select.POLLIN, deadline)
            part = os.read(self._out, count - len(data))
            if not part:
                raise Lost(self._signal())
            data += part
        return bytes(data)

    def _signal(self) -> int:
        """The signal that ended the process; SIGABRT where it gave up by itself: it ran out of memory."""
        try:
            code = self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            return signal.SIGABRT
        return -code if code < 0 else signal.SIGABRT


def _wait(descriptor: int, event: int, deadline: float) -> None:
    poll = select.poll()
    poll.register(descriptor, event)
    if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise Lost(0)
