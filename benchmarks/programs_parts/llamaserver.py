"""llama.cpp's own server. In: a cache folder. Out: its URL.

It is compiled from the sources that PyPI's llama-cpp-python has (for this machine's instructions, without its web
page), once, and serves the weights that benchmarks/peers.py has made from the same file.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO
from urllib.error import URLError
from urllib.request import urlopen

VERSION = "0.3.36"  # of llama-cpp-python
FILES = {"int8": "Q8_0.gguf", "int4": "Q4_0.gguf"}  # by our dtype; BF16.gguf for all others
SLOTS = 16  # sequences at once
READY = 120.0  # seconds until a server that does not answer is given up on
BUILD = 3600  # seconds that compiling may take; ten minutes on two free cores
_OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DGGML_NATIVE=ON",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_OPENSSL=OFF",
)


class NotInstalled(Exception):
    """Why it is not here."""


def binary(cache: Path) -> Path:
    """Where it lies in the cache folder, whether it is there or not."""
    return cache / "peers" / f"llama-server-{VERSION}" / "llama-server"


def build(cache: Path) -> Path:
    """Compile it unless it is there. Raises `NotInstalled`."""
    target = binary(cache)
    if target.is_file():
        return target
    for tool in ("cmake", "c++"):
        if shutil.which(tool) is None:
            raise NotInstalled(f"llama.cpp's server is compiled, and {tool} is missing")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as name:
        folder = Path(name)
        pip = [sys.executable, "-P", "-m", "pip", "download", "-q", "--no-deps", "--no-binary", "llama-cpp-python"]
        _run([*pip, f"llama-cpp-python=={VERSION}", "-d", str(folder)])
        with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
            archive.extractall(folder, filter="data")
        source = next(folder.glob("*/vendor/llama.cpp"))
        _run(["cmake", "-S", str(source), "-B", str(folder / "made"), *_OPTIONS])
        _run(["cmake", "--build", str(folder / "made"), "--target", "llama-server", "-j", str(os.cpu_count() or 1)])
        os.replace(folder / "made" / "bin" / "llama-server", target)
    return target


def model(cache: Path, dtype: str) -> Path:
    """The weights. Raises `NotInstalled` when benchmarks/peers.py has not made them."""
    name = FILES.get(dtype, "BF16.gguf")
    found = sorted((cache / "peers" / "models").glob(f"*/llama.cpp/{name}"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise NotInstalled(f"no {name}: `python -P benchmarks/peers.py --prepare --peers llama.cpp` makes it")
    return found[-1]


def ready(cache: Path, dtype: str) -> None:
    """Raise `NotInstalled` unless both are there."""
    build(cache)
    model(cache, dtype)


@contextlib.contextmanager
def serve(cache: Path, dtype: str, threads: int, slots: int) -> Iterator[str]:
    """A server with so many KV slots in one pool for all sequences, flash attention, continuous batching."""
    port = _free_port()
    command = [str(build(cache)), "-m", str(model(cache, dtype)), "--host", "127.0.0.1", "--port", str(port)]
    command += ["-c", str(slots), "-np", str(SLOTS), "--kv-unified", "-fa", "on", "-b", "2048", "-ub", "512"]
    command += ["--cache-reuse", "256", "--load-mode", "none", "--log-disable"]
    if threads:
        command += ["-t", str(threads), "-tb", str(threads)]
    environment = {**os.environ, "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}  # weights on huge pages, not mapped
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=said, env=environment
        )
        try:
            _wait(process, f"http://127.0.0.1:{port}/health", said)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait()


def _wait(process: subprocess.Popen[bytes], url: str, said: IO[bytes]) -> None:
    patience = time.monotonic() + READY
    while time.monotonic() < patience:
        if process.poll() is not None:
            said.seek(0)
            lines = said.read().decode(errors="replace").strip().splitlines()
            raise NotInstalled(f"llama.cpp's server ended: {lines[-1] if lines else process.returncode}")
        with contextlib.suppress(URLError, ConnectionError, TimeoutError), urlopen(url, timeout=5) as answer:
            if answer.status == 200:
                return
        time.sleep(0.1)
    raise NotInstalled(f"llama.cpp's server did not answer within {READY:g} s")


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert isinstance(port, int), "an address of IPv4"
    return port


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=BUILD, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotInstalled(f"llama.cpp's server: {error}") from error
    if done.returncode:
        said = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise NotInstalled(f"llama.cpp's server: {said[-1] if said else 'no reason given'}")
