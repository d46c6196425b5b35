"""The compiling processes seen from outside: forked, asked, and ended when they take too long.

In: a `Hello`, then constraints as msgpack. Out: `Done` or `Refused`; `Lost` says why there is no answer.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import msgspec

from ramet.frontend.errors import EngineError
from ramet.runtime.grammar.child import Done, Ready, Refused, Reply, framed

START_SECONDS = 60.0  # for a machine that is very busy; measured 0.5 s
MOST_REPLY = 16 << 20
NICE = 5  # of a process that takes long: a third of the share of others
_REPLIES: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Ready | Done | Refused)
_FORK = (0).to_bytes(4, "little")


class Lost(Exception):
    """No answer came: the time was up (`signal` is 0) or the process ended, by `signal` where it is known."""

    def __init__(self, signal: int) -> None:
        super().__init__(f"signal {signal}")
        self.signal = signal


class _Frames:
    """Frames over a socket, under deadlines. Raises `Lost` when the time is up, OSError when the other end has gone."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        channel.setblocking(False)

    def send(self, message: bytes, deadline: float) -> None:
        """Send a frame."""
        left = memoryview(framed(message))
        while left:
            self._await(select.POLLOUT, deadline)
            left = left[self._channel.send(left[: 1 << 16]) :]

    def receive(self, deadline: float) -> Reply:
        """The next frame."""
        size = int.from_bytes(self._receive(4, deadline), "little")
        if size > MOST_REPLY:
            raise Lost(0)
        return _REPLIES.decode(self._receive(size, deadline))

    def exchange(self, message: bytes, deadline: float) -> Reply:
        """Send a frame, and receive one."""
        self.send(message, deadline)
        return self.receive(deadline)

    def _receive(self, count: int, deadline: float) -> bytes:
        data = bytearray()
        while len(data) < count:
            self._await(select.POLLIN, deadline)
            part = self._channel.recv(count - len(data))
            if not part:
                raise ConnectionError("the process has ended")
            data += part
        return bytes(data)

    def _await(self, event: int, deadline: float) -> None:
        if not self.wait(deadline, event):
            raise Lost(0)

    def wait(self, deadline: float, event: int = select.POLLIN) -> bool:
        """Whether something has arrived by `deadline`, the end of the other side included."""
        poll = select.poll()
        poll.register(self._channel, event)
        return bool(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))


class Nursery:
    """The process that has loaded the vocabulary and that workers are forked from. May be used from any thread. Raises
    `EngineError` when it cannot be started or cannot work."""

    def __init__(self, hello: bytes) -> None:
        self._owner = os.getpid()
        self._turn = threading.Lock()
        ours, theirs = socket.socketpair()
        # numpy's threads would take address space, which is limited
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "ramet.runtime.grammar.child", str(self._owner)],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            ours.close()
            raise EngineError(f"the process that compiles grammars cannot be started: {error}") from error
        finally:
            theirs.close()
        self._channel = ours
        try:
            reply = _Frames(ours).exchange(hello, time.monotonic() + START_SECONDS)
        except (Lost, OSError) as error:
            self.end()
            raise EngineError(f"the process that compiles grammars did not start ({error})") from None
        if isinstance(reply, Refused):
            self.end()
            raise EngineError(f"the process that compiles grammars cannot work: {reply.message}")
        ours.settimeout(START_SECONDS)

    @property
    def pid(self) -> int:
        """The id of the process."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    def fork(self, channel: socket.socket) -> int:
        """A new worker's process, which talks over `channel`; its id. Takes some 10 ms."""
        with self._turn:
            try:
                socket.send_fds(self._channel, [_FORK], [channel.fileno()])
                pid = self._answer()
            except OSError as error:
                raise EngineError(f"the process that compiles grammars was lost: {error}") from None
        if pid <= 0:
            raise EngineError("the process that compiles grammars cannot fork; the system has too many processes")
        return pid

    def reap(self, pid: int) -> int:
        """How a worker's process that has ended, or was killed, ended: as `Popen.returncode` says it. Until then its id
        is nobody else's."""
        with self._turn:
            try:
                self._channel.sendall(pid.to_bytes(4, "little"))
                return self._answer()
            except OSError:
                return -signal.SIGKILL

    def _answer(self) -> int:
        data = b""
        while len(data) < 4:
            part = self._channel.recv(4 - len(data))
            if not part:
                raise ConnectionError("it has ended")
            data += part
        return int.from_bytes(data, "little", signed=True)

    def end(self) -> None:
        """Kill the process. Its workers are ended first. A process forked from the owner leaves it alone."""
        if os.getpid() == self._owner:
            with contextlib.suppress(OSError):
                self._process.kill()
            self._process.wait()
            self._channel.close()


class Worker:
    """One compiling process. Used by one thread at a time. Raises `EngineError` when there can be none."""

    def __init__(self, nursery: Nursery) -> None:
        self._owner = os.getpid()
        self._nursery = nursery
        self._lock = threading.Lock()
        self._killed = False
        self._code: int | None = None  # how the process ended, once that is known
        self._channel, theirs = socket.socketpair()
        try:
            self.pid = nursery.fork(theirs)
        except EngineError:
            self._channel.close()
            raise
        finally:
            theirs.close()
        self._frames = _Frames(self._channel)

    @property
    def alive(self) -> bool:
        """Whether the process still runs, as far as an idle one shows. False once it was killed."""
        return not self._killed and not select.select([self._channel], [], [], 0)[0]

    def ask(self, constraint: bytes, deadline: float) -> None:
        """Have one constraint compiled. This and `answer` raise `Lost`; the worker must be ended then."""
        self._guarded(lambda: self._frames.send(constraint, deadline))

    def answered(self, deadline: float) -> bool:
        """Whether there is an answer by `deadline` (of the monotonic clock)."""
        return self._frames.wait(deadline)

    def answer(self, deadline: float) -> Done | Refused:
        """The answer."""
        reply = self._guarded(lambda: self._frames.receive(deadline))
        if reply is None or isinstance(reply, Ready):
            raise Lost(0)
        return reply

    def _guarded(self, talk: Callable[[], Reply | None]) -> Reply | None:
        try:
            return talk()
        except (OSError, ValueError, msgspec.MsgspecError) as error:  # ended by another thread, or broken
            raise Lost(self._signal()) from error

    def seconds(self) -> float | None:
        """CPU time that the process has used so far; None where the system does not tell, or when it has ended."""
        if sys.platform != "linux":
            return None
        with contextlib.suppress(OSError):
            return time.clock_gettime((~self.pid << 3) | 2)  # the clock of clock_getcpuclockid(3)
        return None

    def yield_to_others(self) -> None:
        """Let those that take less time go first."""
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, self.pid, NICE)

    def kill(self) -> None:
        """End the process at once. May be called by any thread; a process forked from the owner leaves it alone."""
        self._killed = True
        if os.getpid() == self._owner:
            with self._lock, contextlib.suppress(OSError):
                if self._code is None:
                    os.kill(self.pid, signal.SIGKILL)

    def end(self) -> None:
        """Kill the process and let go of everything. Nobody may be using it."""
        if os.getpid() == self._owner:
            self._signal()
            self._channel.close()

    def _signal(self) -> int:
        """The signal that ended the process, which has closed its socket or is killed here; SIGABRT where it gave up by
        itself: it ran out of memory."""
        self.kill()  # changes nothing of a process that is ending already
        with self._lock:  # once reaped, the id may be another process's
            if self._code is None:
                self._code = self._nursery.reap(self.pid)
        return -self._code if self._code < 0 else int(signal.SIGABRT)
