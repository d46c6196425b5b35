"""The two ends of the wire between the world of text and the engine: in one process (queues) and between two (zmq
over ipc).

In and out: orders one way, reports the other, msgpack of schema-checked structs (R1). A `Port` is the engine's end,
a `Link` the client's.
"""

from __future__ import annotations

import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from typing import Protocol

import msgspec
import zmq

from ramet.runtime import messages as m
from ramet.runtime.config import Config

Call = Callable[[], None]
GRACE_SECONDS = 5.0


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


class QueuePort:
    """The engine's end inside one process."""

    def __init__(self) -> None:
        self.orders: queue.SimpleQueue[m.Order] = queue.SimpleQueue()
        self.reports: queue.SimpleQueue[m.Report | Call | None] = queue.SimpleQueue()

    def receive(self, block: bool) -> list[m.Order]:
        """All orders that have arrived."""
        orders = [self.orders.get()] if block else []
        while not self.orders.empty():
            orders.append(self.orders.get_nowait())
        return orders

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
        except Exception as error:  # noqa: BLE001 (the main of the engine's thread: the client is told)
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
        if threading.current_thread() is not self._thread:
            self._thread.join()


class ZmqPort:
    """The engine's end of two `ipc://` sockets in a private directory."""

    def __init__(self, directory: str) -> None:
        self._context = zmq.Context()
        self._orders = self._context.socket(zmq.PULL)
        self._reports = self._context.socket(zmq.PUSH)
        for socket, name in ((self._orders, "orders"), (self._reports, "reports")):
            socket.set_hwm(0)
            socket.setsockopt(zmq.LINGER, 1000)
            socket.connect(f"ipc://{directory}/{name}")
        self._decoder = msgspec.msgpack.Decoder(m.Order)
        self._encoder = msgspec.msgpack.Encoder()

    def receive(self, block: bool) -> list[m.Order]:
        """All orders that have arrived."""
        orders: list[m.Order] = []
        flag = 0 if block else zmq.NOBLOCK
        while True:
            try:
                orders.append(self._decoder.decode(self._orders.recv(flag)))
            except zmq.Again:
                return orders
            flag = zmq.NOBLOCK

    def send(self, report: m.Report) -> None:
        """Hand a report over."""
        self._reports.send(self._encoder.encode(report))

    def close(self) -> None:
        """Flush and close the sockets."""
        self._context.destroy()


class ProcessLink:
    """An engine in a process of its own, which ends when this one does (its standard input is our pipe) and whose
    end we notice at once (our pipe is its standard output)."""

    def __init__(self, config: Config) -> None:
        self._directory = tempfile.mkdtemp(prefix="ramet-")  # mode 0700
        self._context = zmq.Context()
        self._orders = self._bind(zmq.PUSH, "orders")
        self._reports = self._bind(zmq.PULL, "reports")
        self._lock = threading.Lock()
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[m.Report] = msgspec.msgpack.Decoder(m.Report)
        self._calls: queue.SimpleQueue[Call] = queue.SimpleQueue()
        self._wake_out, self._wake_in = os.pipe()
        self._closed = False
        command = [sys.executable, "-P", "-m", "ramet.runtime.process", self._directory]
        # Threads that spin while they wait cost a factor of 20 and more as soon as another process wants the cores.
        environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, "PYTHONSAFEPATH": "1"}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        assert self.process.stdin is not None and self.process.stdout is not None, "both are pipes"
        self.process.stdin.write(msgspec.json.encode(config) + b"\n")
        self.process.stdin.flush()
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
        with self._lock:
            if not self._closed:
                self._orders.send(self._encoder.encode(order), zmq.NOBLOCK)

    def post(self, call: Call) -> None:
        """Have `receive` return `call`."""
        self._calls.put(call)
        with self._lock:
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
                return reports

    def close(self) -> None:
        """Ask the process to end, wait, end it if it does not, and remove its directory. The receiving thread must
        be done or the caller."""
        self.send(m.OrderStop())
        try:
            self.process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def release(self) -> None:
        """Free sockets, pipes and the directory; called by the receiving thread when `receive` has returned None."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()
        self.process.wait()
        self._context.destroy(linger=0)
        os.close(self._wake_in)
        os.close(self._wake_out)
        shutil.rmtree(self._directory, ignore_errors=True)
