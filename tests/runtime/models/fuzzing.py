"""Seeded mutations of files of weights, and what must hold of every one of them.

In: a seed and a number. Out: the mutated bytes, the same each time; and a sentence about what went wrong, or nothing.
Mutations know the format: lengths, counts, types and offsets are hit more often than chance would.
"""

from __future__ import annotations

import json
import random
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

from ramet.frontend.errors import ModelError
from ramet.runtime.models.gguf import read_gguf
from ramet.runtime.models.safetensors_map import SIZES, read_header

MOST = 4 << 20  # bytes that reading a file of some 2,000 may take
EDGES = (0, 1, 2, 7, 8, 9, 31, 32, 33, 127, 128, 255, 256, 4096, (1 << 15) - 1, 1 << 16, (1 << 24) + 1, (1 << 31) - 1)
EDGES += (1 << 31, (1 << 32) - 1, 1 << 32, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 32, (1 << 64) - 1)


def mutated(good: bytes, header: int, rng: random.Random) -> bytes:
    """`good` with one to four mutations in its first `header` bytes."""
    data = bytearray(good)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        _mutate(data, min(header, len(data)), rng)
    return bytes(data)


def _mutate(data: bytearray, header: int, rng: random.Random) -> None:
    at = rng.randrange(max(header, 1))
    if rng.random() < 0.5:  # the end of a header of GGUF is its table of tensors
        at = max(0, header - 1 - rng.randrange(160))
    match rng.randrange(9):
        case 0 if data:
            data[at] ^= 1 << rng.randrange(8)
        case 1 if data:
            data[at] = rng.choice((0, 1, 8, 9, 127, 128, 255))
        case 2:
            data[at : at + 8] = struct.pack("<Q", rng.choice(EDGES))
        case 3:
            data[at : at + 4] = struct.pack("<I", rng.choice(EDGES) & 0xFFFFFFFF)
        case 4:
            del data[rng.randrange(len(data) + 1) :]
        case 5:
            del data[at : at + rng.choice((1, 4, 8, 33))]
        case 6:
            data[at:at] = rng.randbytes(rng.choice((1, 4, 8, 33)))
        case 7:
            source = rng.randrange(max(header, 1))
            data[at : at + 24] = data[source : source + 24]
        case _:
            near = int.from_bytes(data[at : at + 8], "little") + rng.choice((-1, 1, 32))
            data[at : at + 8] = struct.pack("<Q", near % (1 << 64))


def finding(good: bytes, header: int, look: Callable[[Path], None], path: Path, seed: int, number: int) -> str:
    """What mutation `number` of `seed` does that it may not: another error than `ModelError`, or too much memory. Empty
    when it does nothing of the kind."""
    path.unlink(missing_ok=True)  # a new file: an earlier map of the old one must stay valid
    path.write_bytes(mutated(good, header, random.Random(f"{seed}/{number}")))
    where = f"seed={seed} number={number}"
    tracemalloc.start()
    try:
        look(path)
    except ModelError as error:
        if not str(error):
            return f"{where}: a refusal that says nothing"
    except Exception as error:  # noqa: BLE001 (whatever else comes is the finding)
        return f"{where}: {type(error).__name__}: {error}"
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return f"{where}: took {peak} bytes" if peak > MOST else ""


def look_at_gguf(path: Path) -> None:
    """Read a file and every tensor of it; what is accepted must lie inside the file, and not on top of each other."""
    file, size = read_gguf(path), path.stat().st_size
    end = 0
    for info in sorted(file.tensors.values(), key=lambda each: each.offset):
        if not end <= info.offset <= size - info.nbytes or info.nbytes <= 0:
            raise ValueError(f"{info} lies outside of its {size} bytes, or on another tensor")
        end = info.offset + info.nbytes
        if file.dequantize(info.name).shape != info.shape:
            raise ValueError(f"{info} has another shape when it is read")


def look_at_safetensors(path: Path) -> None:
    """The same of a safetensors header, whose tensors lie end to end."""
    end = 0
    for entry in read_header(path).values():
        count = 1
        for side in entry.shape:
            count *= side
        if entry.type in SIZES and count * SIZES[entry.type] != entry.nbytes:
            raise ValueError(f"{entry} has another size than its shape")
        if end and entry.offset != end:
            raise ValueError(f"{entry} does not begin where the one before ends")
        end = entry.offset + entry.nbytes
    if end > path.stat().st_size:
        raise ValueError("a tensor ends beyond the file")


def small_safetensors() -> bytes:
    """A file of three tensors and metadata."""
    sizes = {"a": ("F32", [2, 3], 24), "b": ("BF16", [4], 8), "c": ("I64", [1, 1], 8)}
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (kind, shape, nbytes) in sizes.items():
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [at, at + nbytes]}
        at += nbytes
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(at)
