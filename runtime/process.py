"""The engine's process, and how an engine is built from a `Config`.

In: a line of JSON (the config) on standard input, a directory with two sockets as the only argument. Out: reports
over the socket; standard output stays silent (the parent watches its end), the log goes to standard error. Ends when
standard input closes.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import msgspec

from ramet.frontend.errors import EngineError
from ramet.runtime import messages as m
from ramet.runtime.config import Config
from ramet.runtime.engine import EngineCore, Port
from ramet.runtime.models import hub
from ramet.runtime.models.spec import Spec
from ramet.runtime.ports import SOCKETS, ZmqPort
from ramet.runtime.start import load_tokenizer


def build(config: Config, port: Port) -> tuple[EngineCore, m.Ready]:
    """Load the model that `config` names and put an engine on it."""
    from ramet.runtime.models.load import load_weights  # torch is imported here, not by whoever imports this module
    from ramet.runtime.runner import build as build_runner

    began = time.monotonic()
    source = hub.resolve(config.model)
    spec = hub.load_spec(source)
    tokenizer = load_tokenizer(source)
    _check_room(config, spec)
    runner = build_runner(config, spec, lambda dtype: load_weights(source, spec, dtype))
    eos = tuple(sorted({*spec.eos, *tokenizer.eos}))
    core = EngineCore(runner, port, limits=config.limits, eos=eos, tokenizer=tokenizer, model=source.name)
    seconds = time.monotonic() - began
    return core, m.Ready(source.name, runner.dtype_name, runner.context, runner.capacity, runner.threads, seconds)


def _check_room(config: Config, spec: Spec) -> None:
    """Raise `EngineError` for a pool of a stated size that the free memory does not hold."""
    import torch

    from ramet.runtime.runner import free_memory, kv_bytes_per_token, native_dtype, weight_bytes

    dtype = native_dtype() if config.dtype == "auto" else getattr(torch, config.dtype)
    weights, each, free = weight_bytes(spec, dtype), kv_bytes_per_token(spec, dtype), free_memory()
    if config.kv_tokens and weights + config.kv_tokens * each > free:
        raise EngineError(
            f"kv_tokens={config.kv_tokens}: a KV pool of {config.kv_tokens * each / 2**30:.2f} GiB does not fit; "
            f"{free / 2**30:.2f} GiB are free, the weights take {weights / 2**30:.2f} of them: ask for at most "
            f"{max(free - weights, 0) // each} tokens, or leave it out"
        )


def serve(config: Config, port: Port, ready: Callable[[m.Ready], None]) -> None:
    """Build, say ready, loop."""
    core, hello = build(config, port)
    ready(hello)
    core.run()


def _follow_parent(directory: str) -> NoReturn:
    """End this process when the parent's pipe closes, however the parent ended, and leave nothing behind."""
    while os.read(0, 4096):
        continue
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
    directory = sys.argv[1]
    line = _first_line()
    if not line:  # the parent has ended already
        _follow_parent(directory)
    parent = threading.Thread(target=_follow_parent, args=(directory,), name="ramet-parent", daemon=True)
    parent.start()
    port = ZmqPort(directory)
    try:
        serve(msgspec.json.decode(line, type=Config), port, port.send)
    except Exception as error:  # noqa: BLE001 (the main of the engine's process: the client is told)
        port.send(m.Broken(type(error).__name__, str(error)))
        parent.join()  # the client lets go of us when it has read this
    port.close()
    os._exit(0)  # nothing is left to finalise, and torch takes its time to do so


if __name__ == "__main__":
    main()
