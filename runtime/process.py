"""The engine's process, and how an engine is built from a `Config`.

In: a line of JSON (the config) on standard input, a directory with two sockets as the only argument. Out: reports
over the socket; standard output stays silent (the parent watches its end), the log goes to standard error. Ends when
standard input closes.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable

import msgspec

from ramet.runtime import messages as m
from ramet.runtime.config import Config
from ramet.runtime.engine import EngineCore, Port
from ramet.runtime.models import hub
from ramet.runtime.start import load_tokenizer


def build(config: Config, port: Port) -> tuple[EngineCore, m.Ready]:
    """Load the model that `config` names and put an engine on it."""
    from ramet.runtime.models.load import load_weights  # torch is imported here, not by whoever imports this module
    from ramet.runtime.runner import build as build_runner

    began = time.monotonic()
    source = hub.resolve(config.model)
    spec = hub.load_spec(source)
    tokenizer = load_tokenizer(source)
    runner = build_runner(config, spec, lambda dtype: load_weights(source, spec, dtype))
    eos = tuple(sorted({*spec.eos, *tokenizer.eos}))
    core = EngineCore(runner, port, limits=config.limits, eos=eos, tokenizer=tokenizer, model=source.name)
    seconds = time.monotonic() - began
    return core, m.Ready(source.name, runner.dtype_name, runner.context, runner.capacity, runner.threads, seconds)


def serve(config: Config, port: Port, ready: Callable[[m.Ready], None]) -> None:
    """Build, say ready, loop."""
    core, hello = build(config, port)
    ready(hello)
    core.run()


def _follow_parent() -> None:
    """End this process when the parent's pipe closes, however the parent ended."""
    while os.read(0, 4096):
        continue
    os._exit(0)


def main() -> None:
    """The main of the engine's process."""
    from ramet.runtime.ports import ZmqPort

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the client's to handle: it cancels, the engine goes on
    port = ZmqPort(sys.argv[1])
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            return
        line += byte
    threading.Thread(target=_follow_parent, name="ramet-parent", daemon=True).start()
    try:
        serve(msgspec.json.decode(line, type=Config), port, port.send)
    except Exception as error:
        port.send(m.Broken(type(error).__name__, str(error)))
        port.close()
        raise SystemExit(1) from error
    port.close()


if __name__ == "__main__":
    main()
