"""The processes that compile constraints, so that they can be limited and killed; and the one they are forked from.

The first loads the vocabulary (half a second) and then only forks, in milliseconds: one that was killed is replaced at
once. In: on standard input, a socket, a frame (4 bytes of length, little-endian, then msgpack) with a `Hello`, then
orders to fork; on the sockets of the forked ones constraints. Out: `Ready`; for each constraint `Done` or `Refused`.
"""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import select
import signal
import socket
import sys
import threading

import msgspec

from ramet.frontend import ir
from ramet.frontend.errors import ConstraintError, RametError
from ramet.runtime.boundary import blame
from ramet.runtime.grammar.base import Compiled
from ramet.runtime.grammar.limits import SpecLimits, label
from ramet.runtime.grammar.proof import Prover
from ramet.runtime.grammar.tokens import Lexicon


class Hello(msgspec.Struct, frozen=True):
    """The vocabulary (as `Lexicon.of` takes it), and what a constraint may cost."""

    tokens: list[bytes]
    eos: tuple[int, ...]
    vocab: int | None
    limits: SpecLimits


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The vocabulary is loaded."""


class Done(msgspec.Struct, frozen=True, tag=True):
    """`peak` is the most memory that the process has held, in bytes."""

    compiled: Compiled
    peak: int


class Refused(msgspec.Struct, frozen=True, tag=True):
    """Why a constraint was not compiled (or, before `Ready`, why the process cannot work)."""

    message: str
    peak: int = 0


Reply = Ready | Done | Refused
CONSTRAINTS: msgspec.msgpack.Decoder[ir.Constraint] = msgspec.msgpack.Decoder(ir.Constraint)


def framed(message: bytes) -> bytes:
    """A frame, as both sides write it."""
    return len(message).to_bytes(4, "little") + message


def answer(prover: Prover, constraint: ir.Constraint, limits: SpecLimits) -> Done | Refused:
    """Compile one constraint; whatever goes wrong ends that one alone."""
    name = label(constraint)
    try:
        return Done(prover.compile(constraint), _peak())
    except ConstraintError as error:
        return Refused(error.message, _peak())
    except RecursionError:
        return Refused(f"{name}: is nested too deeply (limit: depth); flatten it", _peak())
    except MemoryError:
        return Refused(over_memory(name, limits), _peak())
    except BaseException as error:  # noqa: BLE001 (the main of a process: the one who asked is told)
        return Refused(f"{name}: cannot be compiled: {blame(error)} (a defect of ramet)", _peak())


def over_memory(name: str, limits: SpecLimits) -> str:
    """What is said when compiling needs too much memory, noticed by either side."""
    return f"{name}: needs more than {limits.memory_bytes >> 20} MiB to compile (limit: compile memory); simplify it"


def main() -> None:
    """The main of the process that compiling ones are forked from; its argument is the parent's process id."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    orders = _silenced(0)  # a forked process must not hold it open
    os.close(_silenced(1))
    parent = _watched(int(sys.argv[1]))
    first = _read_frame(orders)
    if first is None:
        return
    try:
        hello = msgspec.msgpack.decode(first, type=Hello)
        prover = Prover(Lexicon.of(hello.tokens, hello.eos, hello.vocab), hello.limits)
    except (RametError, msgspec.MsgspecError, MemoryError) as error:
        _write(orders, Refused(f"{type(error).__name__}: {error}"))
        return
    _limit(resource.RLIMIT_CORE, 0)
    os.close(_silenced(2))  # what native code says when memory is short is for nobody
    gc.collect()
    gc.freeze()  # what forked processes share is not written to
    _write(orders, Ready())
    _serve(orders, parent, prover, hello.limits)


def _serve(orders: int, parent: int | None, prover: Prover, limits: SpecLimits) -> None:
    """Fork and reap as told: 4 bytes in (0, with a socket: fork; else the process to wait for), 4 bytes out (the new
    process, 0 when there can be none; else how it ended). No threads here: this process forks."""
    channel = socket.socket(fileno=orders)
    while True:
        ready, _, _ = select.select([orders, *([] if parent is None else [parent])], [], [])
        if parent in ready:
            os._exit(0)
        message, sockets, _, _ = socket.recv_fds(channel, 4, 1)
        if len(message) < 4:
            return
        pid = int.from_bytes(message, "little")
        if pid:
            answered = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        else:
            answered = _forked(sockets[0], channel, parent, prover, limits)
            os.close(sockets[0])
        channel.sendall(answered.to_bytes(4, "little", signed=True))


def _forked(own: int, channel: socket.socket, parent: int | None, prover: Prover, limits: SpecLimits) -> int:
    try:
        pid = os.fork()
    except OSError:
        return 0
    if pid == 0:
        try:
            channel.close()
            _compile(own, parent, prover, limits)
        finally:
            os._exit(0)
    return pid


def _compile(own: int, parent: int | None, prover: Prover, limits: SpecLimits) -> None:
    """What a forked process does: answer constraints until its socket closes or the parent ends."""
    if parent is not None:
        _end_with(parent)
    _limit(resource.RLIMIT_AS, limits.memory_bytes)
    while (frame := _read_frame(own)) is not None:
        _limit(resource.RLIMIT_CPU, int(_cpu_seconds()) + 1 + limits.cpu_seconds)
        _write(own, answer(prover, CONSTRAINTS.decode(frame), limits))


def _silenced(stream: int) -> int:
    """Send whatever is printed to nowhere; gives what the stream was."""
    before = os.dup(stream)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), stream)
    return before


def _watched(parent: int) -> int | None:
    """A descriptor that is readable once the parent has ended, however. The kernel's parent-death signal will not do:
    it is sent when the *thread* that started this process ends. Where there are no process descriptors, the end of the
    sockets and the limit on CPU time are what remains."""
    try:
        descriptor = os.pidfd_open(parent)
    except (AttributeError, OSError):
        return None
    if os.getppid() != parent:  # it ended before the line above
        os._exit(0)
    return descriptor


def _end_with(parent: int) -> None:
    """End this process with the parent, also while it is busy or another process holds its socket open."""

    def follow() -> None:
        select.select([parent], [], [])
        os._exit(0)

    threading.Thread(target=follow, name="ramet-parent", daemon=True).start()


def _limit(what: int, soft: int) -> None:
    _, hard = resource.getrlimit(what)
    if hard != resource.RLIM_INFINITY:
        soft = min(soft, hard)
    with contextlib.suppress(ValueError, OSError):  # a system without this limit; the parent's clock remains
        resource.setrlimit(what, (soft, hard))


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _peak() -> int:
    """Bytes that this process has held at most. The kernel's `ru_maxrss` begins with what the *parent* held, which may
    be gigabytes; VmHWM belongs to this program alone."""
    with contextlib.suppress(OSError, ValueError), open("/proc/self/status") as status:
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _read_frame(source: int) -> bytes | None:
    head = _read(source, 4)
    return None if head is None else _read(source, int.from_bytes(head, "little"))


def _read(source: int, count: int) -> bytes | None:
    data = bytearray()
    while len(data) < count:
        part = os.read(source, min(count - len(data), 1 << 20))
        if not part:
            return None
        data += part
    return bytes(data)


def _write(out: int, reply: Reply) -> None:
    left = memoryview(framed(msgspec.msgpack.encode(reply)))
    while left:
        left = left[os.write(out, left) :]


if __name__ == "__main__":
    main()
