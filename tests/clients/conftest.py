"""Servers for foreign clients: processes started by `ramet serve`, one with a tiny model, one with the default one."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

READY = 240.0  # seconds until a server that does not say where it listens is given up on
TINY = ("--dtype", "float32", "--threads", "1", "--kv-tokens", "16384", "--context", "2048")
REAL = ("--kv-tokens", "16384", "--context", "8192")


@contextlib.contextmanager
def served(model: str, *options: str) -> Iterator[str]:
    """The URL of a server process; ended, drained, with exit status 0."""
    command = [sys.executable, "-P", "-m", "ramet", "serve", model, "--port", "0", "--device", "cpu", *options]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAMET_")}
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment | {"PYTHONUNBUFFERED": "1"},
    )
    said: list[str] = []
    found: list[str] = []
    known = threading.Event()

    def read() -> None:
        assert process.stdout is not None, "it is a pipe"
        for line in process.stdout:
            said.append(line)
            url = re.search(r"https?://127\.0\.0\.1:\d+", line)
            if url and not found:
                found.append(url.group())
                known.set()
        known.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        known.wait(READY)
        assert found, f"the server did not say where it listens:\n{''.join(said)}"
        yield found[0]
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, "".join(said[-20:])
    finally:
        process.kill()
        process.wait()
        reader.join(10)


@pytest.fixture(scope="session")
def tiny() -> Iterator[str]:
    """A server with random weights, in float32: the same request has the same answer."""
    with served("random:tiny", *TINY, "--served-model-name", "tiny") as url:
        yield url


@pytest.fixture(scope="session")
def real() -> Iterator[str]:
    """A server with the default model, for programs that check what a model knows."""
    with served("default", *REAL, "--served-model-name", "default") as url:
        yield url
