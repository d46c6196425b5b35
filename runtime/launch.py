"""The start of an engine's process.

In: a config as JSON; later, the directory of its sockets. Out: a process that loads what the config names, and speaks
once it knows the directory. `Early` is one that was started before anybody could say whether it is wanted.

Little is imported: a command line starts an engine before it reads its own arguments.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ramet.runtime.config import Config

ENGINE = "ramet.runtime.process"


def launch(config: bytes, *, native: bool) -> subprocess.Popen[bytes]:
    """Start an engine's process and tell it the `config`, JSON of a `Config` on one line. `native`: torch computes
    nothing in it. Raises `OSError`."""
    command = [sys.executable, "-P", "-m", ENGINE, str(os.getpid())]
    # Threads that spin while they wait cost a factor of 20 and more as soon as another process wants the cores.
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, "PYTHONSAFEPATH": "1"}
    if native:
        # numpy multiplies nothing beside the native kernels, and would start its threads all the same
        environment["OPENBLAS_NUM_THREADS"] = "1"
    # Its own process group: Ctrl-C is the client's to handle, also while the engine is still importing.
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment, process_group=0)
    tell(process, config)
    return process


def tell(process: subprocess.Popen[bytes], line: bytes) -> None:
    """Write a line to the process: first its config, then the directory of its sockets."""
    assert process.stdin is not None, "it is a pipe"
    with contextlib.suppress(BrokenPipeError):  # it has ended already: whoever listens is told
        process.stdin.write(line + b"\n")
        process.stdin.flush()


class Early:
    """An engine's process that was started on a guess, from the thread that lives longest (the kernel takes that
    thread's end for its parent's). `options` are fields of the `Config` that was guessed. It loads what it can without
    fetching anything; `take` it, or `close` this. Raises `OSError`."""

    def __init__(self, options: Mapping[str, str | int]) -> None:
        self._config = json.dumps(dict(options)).encode()
        self._here = (os.getcwd(), dict(os.environ), os.getpid())
        self._process: subprocess.Popen[bytes] | None = launch(self._config, native=options.get("dtype") != "float32")

    def take(self, config: Config) -> subprocess.Popen[bytes] | None:
        """The process, once, which is the caller's from now on. None, and it ends, unless `config` was guessed, it
        still runs, and what a process inherits is as it was."""
        process, here = self._process, (os.getcwd(), dict(os.environ), os.getpid())
        if process is None or here != self._here or process.poll() is not None or not self._means(config):
            self.close()
            return None
        self._process = None
        return process

    def _means(self, config: Config) -> bool:
        import msgspec

        from ramet.frontend.errors import EngineError

        with contextlib.suppress(msgspec.ValidationError, EngineError):
            return msgspec.json.decode(self._config, type=type(config)) == config
        return False

    def close(self) -> None:
        """End the process unless somebody took it. Idempotent; in a forked child it does nothing."""
        process = self._process
        if process is None or os.getpid() != self._here[2]:
            return
        self._process = None
        process.kill()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None, "it is a pipe"
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        process.wait()
