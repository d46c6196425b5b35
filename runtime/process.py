"""The engine's process, and how an engine is built from a `Config`.

In: two lines on standard input, the config as JSON and the directory of two sockets; as argument the parent's id. Out:
reports over a socket; standard output stays silent (the parent watches its end), the log goes to standard error. Ends
when standard input closes or the parent does. What the config names is loaded before the directory is known, unless it
would have to be fetched.
"""

from __future__ import annotations

if __name__ == "__main__":  # the collector finds no garbage in modules: its walks take a fifth of importing them
    import gc

    gc.disable()  # `settle` ends that

import contextlib
import ctypes
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import msgspec

from ramet.runtime import messages as m
from ramet.runtime.config import Config, Limits
from ramet.runtime.engine import EngineCore
from ramet.runtime.grammar.foundry import Foundry
from ramet.runtime.models import hub
from ramet.runtime.models.tokenizer import tokenizer_of
from ramet.runtime.ports import SOCKETS, WakingPort, ZmqPort
from ramet.runtime.runners import runner_for
from ramet.runtime.settle import Trimming, settle

if TYPE_CHECKING:
    from ramet.runtime.grammar.automaton import GrammarCache
    from ramet.runtime.runners import AnyRunner
    from ramet.runtime.text import Tokenizer

PR_SET_PDEATHSIG = 1  # of linux/prctl.h


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model with what computes it; `seconds` is what that took."""

    name: str
    limits: Limits
    tokenizer: Tokenizer
    runner: AnyRunner
    eos: tuple[int, ...]
    seconds: float


def load(config: Config) -> Loaded:
    """Load the model that `config` names. Raises `ModelError` or `EngineError`."""
    began = time.monotonic()
    source = hub.opened(hub.resolve(config.model))
    spec, metadata = hub.load_both(source)
    tokenizer = tokenizer_of(source, metadata, encodes=False)
    config, runner = runner_for(config, spec, source)
    eos = tuple(sorted({*spec.eos, *tokenizer.eos}))
    return Loaded(source.name, config.limits, tokenizer, runner, eos, time.monotonic() - began)


def assemble(loaded: Loaded, port: WakingPort) -> tuple[EngineCore, m.Ready]:
    """Put an engine on a model."""
    tokenizer, runner, eos = loaded.tokenizer, loaded.runner, loaded.eos

    def grammars() -> GrammarCache:
        from ramet.runtime.grammar.automaton import GrammarCache

        tokenizer.warm()  # forced text is encoded on the step loop, which the making would hold up
        return GrammarCache(tokenizer, runner.vocab, eos)

    core = EngineCore(
        runner,
        port,
        limits=loaded.limits,
        eos=eos,
        tokenizer=tokenizer,
        model=loaded.name,
        grammars=Foundry(grammars, port.wake),
    )
    sizes = (runner.context, runner.capacity, runner.threads, loaded.seconds)
    return core, m.Ready(loaded.name, runner.dtype_name, *sizes, runner.kernels)


def build(config: Config, port: WakingPort) -> tuple[EngineCore, m.Ready]:
    """Load the model that `config` names and put an engine on it."""
    return assemble(load(config), port)


def serve(config: Config, port: WakingPort, ready: Callable[[m.Ready], None]) -> None:
    """Build, say ready, loop."""
    _loop(*build(config, port), ready)


def _loop(core: EngineCore, hello: m.Ready, ready: Callable[[m.Ready], None]) -> None:
    try:
        ready(hello)
        core.run()
    finally:
        core.close()


def _settled(ready: Callable[[m.Ready], None]) -> Callable[[m.Ready], None]:
    """`ready`, once this process is set for serving."""

    def settle_first(hello: m.Ready) -> None:
        settle(collect=False)
        ready(hello)

    return settle_first


def _end_with(parent: int) -> None:
    """Have the kernel kill this process when the parent ends: also while it is stopped or busy in native code, and when
    someone else holds the other end of standard input. Linux only; elsewhere the pipe alone tells."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before the line above
        _line()
        _follow_parent(lambda directory: None)


def _follow_parent(tell: Callable[[str], None]) -> NoReturn:
    """Tell the directory once the parent has said it. End this process when the parent's pipe closes, however the
    parent ended, and leave nothing behind."""
    directory = os.fsdecode(_line().rstrip(b"\n"))
    if directory:
        tell(directory)
    while os.read(0, 4096):
        continue
    if directory:
        with contextlib.suppress(OSError):  # the parent may be doing the same
            for name in SOCKETS:
                Path(directory, name).unlink(missing_ok=True)
            Path(directory).rmdir()
    os._exit(0)


def _line() -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        line += (byte := os.read(0, 1))
        if not byte:
            return b""
    return line


def main() -> None:
    """The main of the engine's process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the client's to handle: it cancels, the engine goes on
    _end_with(int(sys.argv[1]))
    line, told = _line(), queue.SimpleQueue[str]()
    parent = threading.Thread(target=_follow_parent, args=(told.put,), name="ramet-parent", daemon=True)
    parent.start()
    directory, port = "", None
    try:
        config = msgspec.json.decode(line, type=Config)
        if not hub.at_hand(config.model):
            directory = told.get()  # the parent has fetched it by then, and shows how far it is
        loaded = load(config)
        port = ZmqPort(directory or told.get())
        core, hello = assemble(loaded, port)
        with Trimming():
            _loop(core, hello, _settled(port.send))
    except BaseException as error:  # noqa: BLE001 (the main of the engine's process: the client is told)
        port = port or ZmqPort(directory or told.get())
        port.send(m.Broken(type(error).__name__, str(error)))
        parent.join()  # the client lets go of us when it has read this
    port.close()
    os._exit(0)  # nothing is left to finalise, and torch takes its time to do so


if __name__ == "__main__":
    main()
