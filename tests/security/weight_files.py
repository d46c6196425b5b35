"""Files of weights that lie, and what is said of each: safetensors as bytes; GGUF comes from the reader's own tests.

In: a reader as a module (the real one, or a mutant). Out: the cases that it did not refuse as it should.
"""

from __future__ import annotations

import json
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ramet.frontend.errors import ModelError

from ..runtime.models import gguf_files

MOST = 4 << 20  # bytes that refusing a file of a few hundred may take


def safetensors(header: object, data: int = 16, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + bytes(data)


def one(**fields: object) -> dict[str, object]:
    """A header of one tensor of 16 bytes, which is right but for `fields`."""
    return {"t": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16], **fields}}


def two(first: list[int], second: list[int]) -> dict[str, object]:
    return {
        name: {"dtype": "U8", "shape": [end - start], "data_offsets": [start, end]}
        for name, (start, end) in (("a", first), ("b", second))
    }


SAFETENSORS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "a header of"),
    "shorter than its length field": (b"\1\0\0", "a header of"),
    "header beyond the file": (safetensors(one(), length=1 << 20), "a header of 1048576 bytes"),
    "header length 2^63": (safetensors(one(), length=1 << 63), "a header of 9223372036854775808"),
    "not JSON": (safetensors(b"\x80\x04pickle"), "not JSON"),
    "not UTF-8": (safetensors(b'{"\xff": 1}'), "not JSON"),
    "deep": (safetensors(b"[" * 100_000), "not JSON"),
    "a list": (safetensors([]), "not an object"),
    "a tensor that is a number": (safetensors({"t": 3}), "lacks dtype, shape or data_offsets"),
    "no offsets": (safetensors({"t": {"dtype": "F32", "shape": [4]}}), "lacks dtype"),
    "one offset": (safetensors(one(data_offsets=[0])), "lacks dtype"),
    "shape of text": (safetensors(one(shape="22")), "has shape"),
    "negative dimension": (safetensors(one(shape=[-2, -2])), "has shape"),
    "fraction": (safetensors(one(shape=[2.0, 2])), "has shape"),
    "true is no dimension": (safetensors(one(shape=[True, 4])), "has shape"),
    "nine dimensions": (safetensors(one(shape=[1] * 8 + [4])), "has shape"),
    "type that is a list": (safetensors(one(dtype=["F32"])), "has shape"),
    "negative offset": (safetensors(one(data_offsets=[-16, 0])), "has shape"),
    "ends before it starts": (safetensors({"t": {"dtype": "X", "shape": [], "data_offsets": [16, 0]}}), "ends before"),
    "size and shape differ": (safetensors(one(shape=[2, 3])), "has 16 bytes"),
    "shape product of 2^64": (safetensors(one(shape=[1 << 32, 1 << 32])), "has 16 bytes"),
    "beyond the file": (safetensors(one(shape=[4, 2], data_offsets=[0, 32])), "incomplete or damaged"),
    "offset of 2^63": (safetensors(one(data_offsets=[1 << 63, (1 << 63) + 16])), "starts at byte"),
    "overlap": (safetensors(two([0, 12], [4, 16])), "the one before ends"),
    "same place": (safetensors(two([0, 16], [0, 16])), "the one before ends"),
    "gap": (safetensors(two([0, 4], [8, 16])), "the one before ends"),
    "bytes behind the last": (safetensors(one(), data=17), "incomplete or damaged"),
    "the same name twice": (safetensors(b'{"t":%b,"t":%b}' % ((json.dumps(one()["t"]).encode(),) * 2), 32), "damaged"),
}


def _said(read: Callable[[Path], object], data: bytes, path: Path) -> tuple[str, int]:
    """What reading a file said, and how many bytes it took at most."""
    path.write_bytes(data)
    tracemalloc.start()
    try:
        read(path)
        said = ""
    except ModelError as error:
        said = str(error)
    except Exception as error:  # noqa: BLE001 (any other kind of error is a finding)
        said = f"!{type(error).__name__}"
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return said, peak


def _findings(read: Callable[[Path], object], table: dict[str, tuple[bytes, str]], folder: Path) -> list[str]:
    found = []
    for number, (name, (data, message)) in enumerate(table.items()):
        said, peak = _said(read, data, folder / f"case{number}.bin")
        if message not in said or said.startswith("!") or peak > MOST:
            found.append(f"{name}: {said or 'accepted'} ({peak} bytes)")
    return found


def gguf_findings(module: Any, folder: Path) -> list[str]:
    """Cases of GGUF that `module.read_gguf` does not refuse as it should, truncations of a good file among them."""
    found = _findings(module.read_gguf, gguf_files.BAD, folder)
    good = gguf_files.write_small(folder / "good.gguf")
    file = module.read_gguf(folder / "good.gguf")
    last = max(info.offset + info.nbytes for info in file.tensors.values())
    for length in range(0, last, 7):
        said, peak = _said(module.read_gguf, good[:length], folder / f"cut{length}.gguf")
        if not said or said.startswith("!") or peak > MOST:
            found.append(f"cut at {length}: {said or 'accepted'} ({peak} bytes)")
    try:
        file.raw("no such tensor")
    except ModelError:
        return found
    except Exception as error:  # noqa: BLE001 (any other kind of error is a finding)
        return [*found, f"no such tensor: {type(error).__name__}"]
    return [*found, "no such tensor: accepted"]


def safetensors_findings(module: Any, folder: Path) -> list[str]:
    """The same of `module.read_header` and safetensors."""
    return _findings(module.read_header, SAFETENSORS, folder)
