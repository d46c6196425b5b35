"""The cache file of packed weights.

In: a `ModelSource`, its `Spec`, a dtype. Out: the block of memory that an earlier start packed, or None: there is no
file, or one of another model or version, or a damaged one. A file is written under another name and renamed into place.

The block is read into memory of its own and not mapped: a mapped file has small pages, and products that read each
weight once run 1.5 to 1.75 times as fast from huge ones. While it is read its checksum is computed, which costs less.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ramet.kernels.cpu.library import Library, Memory
from ramet.runtime.models.hub import ModelSource
from ramet.runtime.models.names import shards
from ramet.runtime.models.spec import Spec

FORMAT = 1  # of the block's layout and of this file; raise it with either
_MAGIC = b"RAMETPAK"
_HEADER = 4096  # bytes before the block: magic, key, checksum, zeros
_PIECE = 8 << 20  # bytes read at once
_SUMMED = 1 << 20  # bytes under one sum; divides _PIECE
_STALE = 3600  # seconds after which an unfinished file was left by a process that is gone
_ENDS = 1 << 20  # bytes of a model's file, at each end, that are part of its identity


def cache_file(folder: Path, source: ModelSource, dtype: str) -> Path:
    """Where the packed weights of a model are kept: one file per model and dtype, so that old ones do not pile up."""
    place = hashlib.sha256(f"{source.path}\n{dtype}".encode()).hexdigest()[:16]
    return folder / "packed" / f"{place}.packed"


def key(lib: Library, source: ModelSource, spec: Spec, dtype: str) -> bytes:
    """32 bytes that differ when anything differs that the block depends on. Of the model's files: names, sizes, times
    of modification, and the bytes at both ends (headers, and the last tensor). Raises `OSError`, `ModelError`."""
    files = [source.path] if source.kind == "gguf" else shards(source.path)
    facts = {
        "format": FORMAT,
        "abi": lib.abi,
        "dtype": dtype,
        "spec": asdict(spec),
        "files": [_identity(file) for file in files],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).digest()


def _identity(path: Path) -> list[object]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        digest.update(file.read(_ENDS))
        file.seek(max(0, status.st_size - _ENDS))
        digest.update(file.read(_ENDS))
    return [str(path), status.st_size, status.st_mtime_ns, digest.hexdigest()]


def checksum(block: NDArray[np.uint8]) -> bytes:
    """16 bytes of a block whose length is a multiple of 8: sums of its 64-bit words, one per MiB (a changed bit or a
    page of zeros changes its sum), then a hash of the sums."""
    return _digest([_sums(block[at : at + _PIECE]) for at in range(0, len(block), _PIECE)])


def _sums(piece: NDArray[np.uint8]) -> NDArray[np.uint64]:
    words = piece.view(np.uint64)
    return np.add.reduceat(words, np.arange(0, len(words), _SUMMED // 8))


def _digest(sums: list[NDArray[np.uint64]]) -> bytes:
    return hashlib.blake2b(np.concatenate(sums).tobytes(), digest_size=16).digest()


def read(path: Path, key: bytes, lib: Library, nbytes: int, threads: int) -> Memory | None:
    """The block of `nbytes`, in fresh memory; None unless the file is whole and has this key."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        header = os.pread(fd, _HEADER, 0)
        if os.fstat(fd).st_size != _HEADER + nbytes or header[:40] != _MAGIC + key:
            return None
        memory = lib.map(nbytes)
        block = memory.view(0, nbytes)

        def piece(at: int) -> NDArray[np.uint64] | None:
            some = block[at : at + _PIECE]
            filled = os.preadv(fd, [some.data], _HEADER + at)
            return _sums(some) if filled == len(some) else None

        with ThreadPoolExecutor(threads) as readers:
            sums = list(readers.map(piece, range(0, nbytes, _PIECE)))
        whole = [some for some in sums if some is not None]
        return memory if len(whole) == len(sums) and _digest(whole) == header[40:56] else None
    except OSError:  # a file that cannot be read is packed again
        return None
    finally:
        os.close(fd)


def write(path: Path, key: bytes, block: NDArray[np.uint8]) -> bool:
    """Keep a block. False where the folder cannot be written or is full: the next start packs again."""
    temporary = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path.parent)
        fd, temporary = tempfile.mkstemp(suffix=".part", dir=path.parent)
        with os.fdopen(fd, "wb") as file:
            file.write((_MAGIC + key + checksum(block)).ljust(_HEADER, b"\0"))
            file.write(block.data)
        os.replace(temporary, path)
        return True
    except OSError:
        if temporary:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        return False


def _sweep(folder: Path) -> None:
    for left in folder.glob("*.part"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > _STALE:
                left.unlink()
