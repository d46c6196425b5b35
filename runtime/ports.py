"""The two ends of the wire between the world of text and the engine: in one process (queues) and between two (zmq
over ipc).

In and out: orders one way, reports the other, msgpack of schema-checked structs (R1). A `Port` is the engine's end,
a `Link` the client's.
"""

from __future__ import annotations

import contextlib
import math
import os
import queue
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable
from typing import Protocol

import msgspec
import zmq

from ramet.frontend.errors import EngineError
from ramet.runtime import messages as m
from ramet.runtime.config import Config
from ramet.runtime.launch import Early, launch, tell

Call = Callable[[], None]
GRACE_SECONDS = 5.0
SOCKETS = ("orders", "reports")  # names of the sockets in their directory
_WAKE = "inproc://wake"  # inside the engine's process


class Link(Protocol):
    """The client's end. `send` and `post` may be called from any thread; `receive` from one."""

    def send(self, order: m.Order) -> None:
        """Hand an order to the engine; never blocks. Lost when the engine is gone (`receive` tells)."""

    def post(self, call: Call) -> None:
        """Have `receive` return `call`, in order with what comes from the engine."""

    def receive(self) -> list[m.Report | Call] | None:
        """Wait for reports and posted calls; None when the engine is gone."""

    def close(self) -> None:
        """End the engine and wait for it. Idempotent."""

    def kill(self) -> bool:
        """End the engine by force, without waiting (`receive` tells); False where that is impossible."""

    def release(self) -> None:
        """Free what `receive` needed, once it has returned None; called by the receiving thread."""

    def ending(self) -> str:
        """How the engine ended, in words, once `receive` has returned None; else (it raised) it is ended."""

    def is_current_thread(self) -> bool:
        """True in the engine's own thread, where waiting for its end would never end."""


class WakingPort(Protocol):
    """The engine's end, which can be woken by what works beside the loop (the loop itself needs an `engine.Port`)."""

    def receive(self, block: bool, seconds: float | None = None) -> list[m.Order]:
        """All orders that have arrived; waits for one, or to be woken, when `block`, though not longer than
        `seconds`."""

    def send(self, step: m.Step) -> None:
        """Hand news to the client; never blocks."""

    def wake(self) -> None:
        """Have `receive` return, now or the next time. From any thread, until the port is closed."""


class QueuePort:
    """The engine's end inside one process. In `orders` None stands for no order: it only wakes."""

    def __init__(self) -> None:
        self.orders: queue.SimpleQueue[m.Order | None] = queue.SimpleQueue()
        self.reports: queue.SimpleQueue[m.Report | Call | None] = queue.SimpleQueue()

    def receive(self, block: bool, seconds: float | None = None) -> list[m.Order]:
        """All orders that have arrived."""
        try:
            orders = [self.orders.get(timeout=seconds)] if block else []
        except queue.Empty:
            orders = []
        while not self.orders.empty():
            orders.append(self.orders.get_nowait())
        return [order for order in orders if order is not None]

    def wake(self) -> None:
        """Have `receive` return."""
        self.orders.put(None)

    def send(self, step: m.Step) -> None:
        """Hand news over."""
        self.reports.put(step)


class ThreadLink:
    """An engine in a thread of this process. `serve(port, ready)` builds it, calls `ready(Ready)`, and loops until
    stopped."""

    def __init__(self, serve: Callable[[QueuePort, Callable[[m.Ready], None]], None]) -> None:
        self._port = QueuePort()
        self._serve = serve
        self._closed = False
        self._thread = threading.Thread(target=self._main, name="ramet-engine", daemon=True)
        self._thread.start()

    def _main(self) -> None:
        try:
            self._serve(self._port, self._port.reports.put)
        except BaseException as error:  # noqa: BLE001 (the main of the engine's thread: the client is told)
            self._port.reports.put(m.Broken(type(error).__name__, str(error)))
        self._port.reports.put(None)

    def send(self, order: m.Order) -> None:
        """Hand an order to the engine."""
        self._port.orders.put(order)

    def post(self, call: Call) -> None:
        """Have `receive` return `call`."""
        self._port.reports.put(call)

    def receive(self) -> list[m.Report | Call] | None:
        """Reports and calls, or None at the end."""
        item = self._port.reports.get()
        return None if item is None else [item]

    def close(self) -> None:
        """Stop the loop and wait for its thread."""
        if not self._closed:
            self._closed = True
            self.send(m.OrderStop())
        if not self.is_current_thread():
            self._thread.join()

    def kill(self) -> bool:
        """False: a thread cannot be ended from outside."""
        return False

    def release(self) -> None:
        """Nothing to free."""

    def ending(self) -> str:
        """How the engine ended. One that nobody listens to any more is ended here."""
        self.close()
        return "its loop ended"

    def is_current_thread(self) -> bool:
        """True in the engine's thread."""
        return threading.current_thread() is self._thread


class ZmqPort:
    """The engine's end of two `ipc://` sockets in a private directory."""

    def __init__(self, directory: str) -> None:
        self._context = zmq.Context()
        self._waking = threading.Lock()
        self._waker: zmq.Socket[bytes] | None = None
        self._orders = self._context.socket(zmq.PULL)
        self._reports = self._context.socket(zmq.PUSH)
        for socket, name in zip((self._orders, self._reports), SOCKETS, strict=True):
            socket.set_hwm(0)
            socket.setsockopt(zmq.LINGER, 1000)
            socket.connect(f"ipc://{directory}/{name}")
        self._orders.bind(_WAKE)
        self._decoder = msgspec.msgpack.Decoder(m.Order)
        self._encoder = msgspec.msgpack.Encoder()

    def receive(self, block: bool, seconds: float | None = None) -> list[m.Order]:
        """All orders that have arrived."""
        if block and seconds is not None:
            block = False
            self._orders.poll(math.ceil(1000 * seconds))
        orders: list[m.Order] = []
        while True:
            # asked first: an exception for each step in which nothing arrived costs more than the asking
            if not block and not int(self._orders.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
                return orders
            data = self._orders.recv()
            if data:
                orders.append(self._decoder.decode(data))
            block = False

    def wake(self) -> None:
        """Have `receive` return: an empty message arrives."""
        with self._waking:
            if self._waker is None:
                self._waker = self._context.socket(zmq.PUSH)
                self._waker.connect(_WAKE)
            self._waker.send(b"")

    def send(self, report: m.Report) -> None:
        """Hand a report over."""
        self._reports.send(self._encoder.encode(report))

    def close(self) -> None:
        """Flush and close the sockets."""
        self._context.destroy()


class ProcessLink:
    """An engine in a process of its own, which ends when this one does (its standard input is our pipe; on Linux the
    kernel ends it too) and whose end we notice at once (our pipe is its standard output). Make it in the thread that
    will `receive`: the kernel takes the end of the thread that started a process for the end of its parent. Raises
    `EngineError` when it cannot be started. A process that was started `early`, on the same config, is taken."""

    def __init__(self, config: Config, early: Early | None = None) -> None:
        self._directory = tempfile.mkdtemp(prefix="ramet-")  # mode 0700
        self._context = zmq.Context()
        # Reentrant: the collector of garbage may close an engine in the middle of a `send`.
        self._lock = threading.RLock()
        self._decoder: msgspec.msgpack.Decoder[m.Report] = msgspec.msgpack.Decoder(m.Report)
        self._calls: queue.SimpleQueue[Call] = queue.SimpleQueue()
        self._closed = False
        self._ready = False
        self._listed = True
        try:
            self._orders = self._bind(zmq.PUSH, SOCKETS[0])
            self._reports = self._bind(zmq.PULL, SOCKETS[1])
            self.process = _spawn(self._directory, config, early)
        except BaseException as error:  # Ctrl-C too
            self._context.destroy(linger=0)
            shutil.rmtree(self._directory, ignore_errors=True)
            if not isinstance(error, (OSError, zmq.ZMQError)):
                raise
            raise EngineError(
                f"the engine's process cannot be started: {error} (its sockets are in {self._directory!r}; TMPDIR "
                "chooses another place, in_process=True needs none)"
            ) from error
        assert self.process.stdout is not None, "it is a pipe"
        self._wake_out, self._wake_in = os.pipe()
        os.set_blocking(self._wake_in, False)
        self._poller = zmq.Poller()
        self._alive_fd = self.process.stdout.fileno()
        for source in (self._reports, self._alive_fd, self._wake_out):
            self._poller.register(source, zmq.POLLIN)

    def _bind(self, kind: int, name: str) -> zmq.Socket[bytes]:
        socket = self._context.socket(kind)
        socket.set_hwm(0)
        socket.setsockopt(zmq.LINGER, 0)
        socket.bind(f"ipc://{self._directory}/{name}")
        return socket

    def send(self, order: m.Order) -> None:
        """Hand an order to the engine."""
        data = msgspec.msgpack.encode(order)
        with self._lock, contextlib.suppress(zmq.Again):  # nobody is at the other end: `receive` tells
            if not self._closed:
                self._orders.send(data, zmq.NOBLOCK)

    def post(self, call: Call) -> None:
        """Have `receive` return `call`."""
        self._calls.put(call)
        with self._lock, contextlib.suppress(BlockingIOError):  # a full pipe wakes as well
            if not self._closed:
                os.write(self._wake_in, b"!")

    def receive(self) -> list[m.Report | Call] | None:
        """Reports and calls, or None when the process is gone (what it sent before is returned first)."""
        items: list[m.Report | Call] = []
        while not items:
            events = dict(self._poller.poll())
            if self._wake_out in events:
                os.read(self._wake_out, 4096)
                while not self._calls.empty():
                    items.append(self._calls.get_nowait())
            if self._reports in events:
                items += self._drain()
            elif self._alive_fd in events and not os.read(self._alive_fd, 4096):
                last = self._drain()
                if not last and not items:
                    return None
                items += last
        return items

    def _drain(self) -> list[m.Report]:
        reports: list[m.Report] = []
        while True:
            try:
                reports.append(self._decoder.decode(self._reports.recv(zmq.NOBLOCK)))
            except zmq.Again:
                break
        self._ready = self._ready or any(isinstance(report, m.Ready) for report in reports)
        if any(isinstance(report, m.Step) for report in reports):
            self._unlist()
        if any(isinstance(report, m.Broken) for report in reports):
            self._let_go()  # it waits for this before it ends, so that its last word is never lost with it
        return reports

    def _unlist(self) -> None:
        """Remove the sockets' names: an answered order shows that both are connected. Nobody else can connect from now
        on, and nothing stays behind when both processes are killed."""
        if self._listed:
            self._listed = False
            shutil.rmtree(self._directory, ignore_errors=True)

    def _let_go(self) -> None:
        """Close our end of its standard input: it ends at once."""
        if self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()

    def close(self) -> None:
        """Ask the process to end, wait, and end it if it does not; at once when it is still loading."""
        if self._ready:
            self.send(m.OrderStop())
        else:
            self.process.kill()
        self._wait()

    def kill(self) -> bool:
        """Kill the process, stopped or not."""
        self.process.kill()
        return True

    def _wait(self) -> None:
        try:
            self.process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def release(self) -> None:
        """Free sockets, pipes, the process and the directory."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._let_go()
        self._wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
        self._context.destroy(linger=0)
        os.close(self._wake_in)
        os.close(self._wake_out)
        shutil.rmtree(self._directory, ignore_errors=True)

    def ending(self) -> str:
        """The process's exit status, in words."""
        self._let_go()
        self._wait()
        code = self.process.returncode
        if code >= 0:
            return f"its process ended with status {code}"
        name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
        memory = "; the system may have run out of memory" if name == "SIGKILL" else ""
        return f"its process was killed by {name}{memory}"

    def is_current_thread(self) -> bool:
        """False: it has a process."""
        return False


def _spawn(directory: str, config: Config, early: Early | None = None) -> subprocess.Popen[bytes]:
    process = early.take(config) if early is not None else None
    if process is None:
        native = config.kernels != "torch" and config.dtype != "float32"
        process = launch(msgspec.json.encode(config), native=native)
    tell(process, os.fsencode(directory))
    return process
