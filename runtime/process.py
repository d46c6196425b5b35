"""The engine's process, and how an engine is built from a `Config`.

In: a line of JSON (the config) on standard input; as arguments a directory with two sockets and the parent's id. Out:
reports over the socket; standard output stays silent (the parent watches its end), the log goes to standard error.
Ends when standard input closes or the parent does.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import msgspec

from ramet.runtime import messages as m
from ramet.runtime.config import Config
from ramet.runtime.engine import EngineCore
from ramet.runtime.grammar.foundry import Foundry
from ramet.runtime.models import hub
from ramet.runtime.models.tokenizer import tokenizer_of
from ramet.runtime.ports import SOCKETS, WakingPort, ZmqPort
from ramet.runtime.runners import runner_for
from ramet.runtime.settle import settle

if TYPE_CHECKING:
    from ramet.runtime.grammar.automaton import GrammarCache

PR_SET_PDEATHSIG = 1  # of linux/prctl.h


def build(config: Config, port: WakingPort) -> tuple[EngineCore, m.Ready]:
    """Load the model that `config` names and put an engine on it."""
    began = time.monotonic()
    source = hub.resolve(config.model)
    spec, metadata = hub.load_both(source)
    tokenizer = tokenizer_of(source, metadata, encodes=False)
    config, runner = runner_for(config, spec, source)
    eos = tuple(sorted({*spec.eos, *tokenizer.eos}))

    def grammars() -> GrammarCache:
        from ramet.runtime.grammar.automaton import GrammarCache

        tokenizer.warm()  # forced text is encoded on the step loop, which the making would hold up
        return GrammarCache(tokenizer, runner.vocab, eos)

    core = EngineCore(
        runner,
        port,
        limits=config.limits,
        eos=eos,
        tokenizer=tokenizer,
        model=source.name,
        grammars=Foundry(grammars, port.wake),
    )
    seconds = time.monotonic() - began
    sizes = (runner.context, runner.capacity, runner.threads, seconds)
    return core, m.Ready(source.name, runner.dtype_name, *sizes, runner.kernels)


def serve(config: Config, port: WakingPort, ready: Callable[[m.Ready], None]) -> None:
    """Build, say ready, loop."""
    core, hello = build(config, port)
    try:
        ready(hello)
        core.run()
    finally:
        core.close()


def _settled(ready: Callable[[m.Ready], None]) -> Callable[[m.Ready], None]:
    """`ready`, once this process is set for serving."""

    def settle_first(hello: m.Ready) -> None:
        settle()
        ready(hello)

    return settle_first


def _end_with(parent: int, directory: str) -> None:
    """Have the kernel kill this process when the parent ends: also while it is stopped or busy in native code, and when
    someone else holds the other end of standard input. Linux only; elsewhere the pipe alone tells."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before the line above
        _leave(directory)


def _follow_parent(directory: str) -> NoReturn:
    """End this process when the parent's pipe closes, however the parent ended, and leave nothing behind."""
    while os.read(0, 4096):
        continue
    _leave(directory)


def _leave(directory: str) -> NoReturn:
    with contextlib.suppress(OSError):  # the parent may be doing the same
        for name in SOCKETS:
            Path(directory, name).unlink(missing_ok=True)
        Path(directory).rmdir()
    os._exit(0)


def _first_line() -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        line += (byte := os.read(0, 1))
        if not byte:
            return b""
    return line


def main() -> None:
    """The main of the engine's process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the client's to handle: it cancels, the engine goes on
    directory, parent_id = sys.argv[1], int(sys.argv[2])
    _end_with(parent_id, directory)
    line = _first_line()
    if not line:  # the parent has ended already
        _follow_parent(directory)
    parent = threading.Thread(target=_follow_parent, args=(directory,), name="ramet-parent", daemon=True)
    parent.start()
    port = ZmqPort(directory)
    try:
        serve(msgspec.json.decode(line, type=Config), port, _settled(port.send))
    except BaseException as error:  # noqa: BLE001 (the main of the engine's process: the client is told)
        port.send(m.Broken(type(error).__name__, str(error)))
        parent.join()  # the client lets go of us when it has read this
    port.close()
    os._exit(0)  # nothing is left to finalise, and torch takes its time to do so


if __name__ == "__main__":
    main()
