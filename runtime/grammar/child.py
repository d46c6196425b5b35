"""The process that compiles constraints, so that it can be limited and killed.

In: on standard input frames (4 bytes of length, little-endian, then msgpack): a `Hello`, then constraints. Out: on
standard output a `Ready`, then for each constraint `Done` or `Refused`. Ends when standard input or the parent does.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import sys
import threading

import msgspec

from ramet.frontend import ir
from ramet.frontend.errors import ConstraintError, RametError
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
    except Exception as error:  # noqa: BLE001 (the main of a process: the one who asked is told)
        return Refused(f"{name}: cannot be compiled: {type(error).__name__}: {error} (a defect of ramet)", _peak())


def over_memory(name: str, limits: SpecLimits) -> str:
    """What is said when compiling needs too much memory, noticed by either side."""
    return f"{name}: needs more than {limits.memory_bytes >> 20} MiB to compile (limit: compile memory); simplify it"


def main() -> None:
    """The main of the compiling process; its argument is the parent's process id."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    out = _silenced(1)
    _end_with(int(sys.argv[1]))
    first = _read_frame()
    if first is None:
        return
    try:
        hello = msgspec.msgpack.decode(first, type=Hello)
        prover = Prover(Lexicon.of(hello.tokens, hello.eos, hello.vocab), hello.limits)
    except (RametError, msgspec.MsgspecError, MemoryError) as error:
        _write(out, Refused(f"{type(error).__name__}: {error}"))
        return
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_AS, hello.limits.memory_bytes)
    os.close(_silenced(2))  # what native code says when memory is short is for nobody
    _write(out, Ready())
    while (frame := _read_frame()) is not None:
        _limit(resource.RLIMIT_CPU, int(_cpu_seconds()) + 1 + hello.limits.cpu_seconds)
        _write(out, answer(prover, CONSTRAINTS.decode(frame), hello.limits))


def _silenced(stream: int) -> int:
    """Send whatever is printed to nowhere; gives what the stream was."""
    before = os.dup(stream)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), stream)
    return before


def _end_with(parent: int) -> None:
    """End this process when the parent ends, however, also while it is busy or another process holds its input open.
    The kernel's parent-death signal will not do: it is sent when the *thread* that started this process ends. Where
    there are no process descriptors, the end of the input and the limit on CPU time are what remains."""
    try:
        descriptor = os.pidfd_open(parent)
    except (AttributeError, OSError):
        return
    if os.getppid() != parent:  # it ended before the line above
        os._exit(0)

    def follow() -> None:
        select.select([descriptor], [], [])
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


def _read_frame() -> bytes | None:
    head = _read(4)
    return None if head is None else _read(int.from_bytes(head, "little"))


def _read(count: int) -> bytes | None:
    data = bytearray()
    while len(data) < count:
        part = os.read(0, min(count - len(data), 1 << 20))
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
