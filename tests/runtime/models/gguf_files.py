"""GGUF files for tests: small valid ones, and ones that lie, byte by byte.

Out: bytes, and what the refusal of a bad file says.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from gguf import GGUFWriter, quants
from gguf.constants import GGMLQuantizationType


def write_small(path: Path) -> bytes:
    """A valid file with every kind of value, an array of strings and tensors of three types."""
    rng = np.random.default_rng(0)
    writer = GGUFWriter(path, "llama")
    writer.add_uint8("a.u8", 200)
    writer.add_int8("a.i8", -5)
    writer.add_uint16("a.u16", 60000)
    writer.add_int16("a.i16", -300)
    writer.add_uint32("a.u32", 1 << 31)
    writer.add_int32("a.i32", -7)
    writer.add_uint64("a.u64", 1 << 60)
    writer.add_int64("a.i64", -(1 << 60))
    writer.add_float32("a.f32", 0.5)
    writer.add_float64("a.f64", 0.1)
    writer.add_bool("a.bool", True)
    writer.add_string("a.text", "žluťoučký kůň 🐎")
    writer.add_array("a.words", ["a", "", "Ġthe", "日本"])
    writer.add_array("a.ints", [1, 2, 3])
    writer.add_array("a.floats", [0.5, -1.0])
    writer.add_array("a.flags", [True, False])
    writer.add_tensor("f32", rng.standard_normal((3, 4)).astype(np.float32))
    writer.add_tensor("f16", rng.standard_normal((2, 5)).astype(np.float16))
    matrix = rng.standard_normal((4, 64)).astype(np.float32)
    q8 = quants.quantize(matrix, GGMLQuantizationType.Q8_0)
    writer.add_tensor("q8", q8, raw_dtype=GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def entry(name: bytes, dims: list[int], kind: int = 0, offset: int = 0) -> bytes:
    head = struct.pack("<Q", len(name)) + name + struct.pack("<I", len(dims))
    return head + b"".join(struct.pack("<Q", d) for d in dims) + struct.pack("<IQ", kind, offset)


def pair(key: bytes, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(key)) + key + struct.pack("<I", kind) + value


def build(pairs: list[bytes], entries: list[bytes], data: int = 256, counts: tuple[int, int] | None = None) -> bytes:
    tensors, keys = counts or (len(entries), len(pairs))
    header = b"GGUF" + struct.pack("<IQQ", 3, tensors, keys) + b"".join(pairs) + b"".join(entries)
    return header + b"\0" * (-len(header) % 32 + data)


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


BIG = 1 << 60
BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "shorter than its fixed header"),
    "magic": (b"GGML" + bytes(60), "instead of b'GGUF'"),
    "tensor count": (build([], [], counts=(BIG, 0)), "tensors do not fit"),
    "key count": (build([], [], counts=(0, BIG)), "keys do not fit"),
    "key count beyond the file": (build([], [], counts=(0, 5)), "empty or occurs twice"),
    "key length": (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, BIG) + bytes(64), "at most 65535 are accepted"),
    "string length": (build([pair(b"k", 8, struct.pack("<Q", BIG))], []), "at most 67108864 are accepted"),
    "string beyond the file": (build([pair(b"k", 8, struct.pack("<Q", 5000))], []), "needs 5000 bytes"),
    "not UTF-8": (build([pair(b"k", 8, text(b"\xff\xfe"))], []), "not UTF-8"),
    "key not UTF-8": (build([pair(b"\xff", 0, b"\0")], []), "not UTF-8"),
    "array count": (build([pair(b"k", 9, struct.pack("<IQ", 4, BIG))], []), "at most 16777216 are accepted"),
    "array beyond the file": (build([pair(b"k", 9, struct.pack("<IQ", 12, 1000))], []), "needs 8000 bytes"),
    "strings beyond the file": (build([pair(b"k", 9, struct.pack("<IQ", 8, 1000))], []), "needs 8000 bytes"),
    "a long string inside": (build([pair(b"k", 9, struct.pack("<IQQ", 8, 2, BIG))], []), "are left"),
    "nested array": (build([pair(b"k", 9, struct.pack("<IQ", 9, 1) * 50)], []), "array of arrays"),
    "value type": (build([pair(b"k", 77, b"")], []), "unknown value type 77"),
    "element type": (build([pair(b"k", 9, struct.pack("<IQ", 77, 1))], []), "unknown element type 77"),
    "version 1": (b"GGUF" + struct.pack("<IQQ", 1, 0, 0) + bytes(64), "version 1; supported"),
    "big endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0) + bytes(64), "version 50331648; supported"),
    "booleans": (build([pair(b"k", 9, struct.pack("<IQ", 7, 3) + b"\0\1\2")], []), "neither 0 nor 1"),
    "boolean": (build([pair(b"k", 7, b"\7")], []), "boolean of value 7"),
    "duplicate key": (build([pair(b"k", 0, b"\1"), pair(b"k", 0, b"\2")], []), "'k' is empty or occurs twice"),
    "duplicate tensor": (build([], [entry(b"t", [4]), entry(b"t", [4], offset=32)]), "'t' is empty or occurs twice"),
    "tensor name length": (build([], [entry(b"t" * 300, [4])]), "at most 256 are accepted"),
    "rank 0": (build([], [entry(b"t", [])]), "has 0 dimensions"),
    "rank 5": (build([], [entry(b"t", [1] * 5)]), "has 5 dimensions"),
    "dimension 0": (build([], [entry(b"t", [4, 0])]), "does not fit"),
    "dimensions that overflow": (build([], [entry(b"t", [1 << 32, 1 << 32])]), "does not fit"),
    "huge dimension": (build([], [entry(b"t", [(1 << 64) - 1])]), "does not fit"),
    "unknown tensor type": (build([], [entry(b"t", [4], kind=99)]), "has the unsupported type 99"),
    "a type that nobody dequantises": (build([], [entry(b"t", [4], kind=24)]), "unsupported type 24"),
    "block size": (build([], [entry(b"t", [33], kind=8)]), "not a multiple of its block of 32"),
    "unaligned offset": (build([], [entry(b"t", [4], offset=4)]), "not a multiple of 32"),
    "offset beyond the file": (build([], [entry(b"t", [4], offset=1 << 40)]), "beyond the end"),
    "offset that overflows": (build([], [entry(b"t", [4], offset=(1 << 64) - 32)]), "beyond the end"),
    "size beyond the file": (build([], [entry(b"t", [65])]), "beyond the end"),
    "overlap": (build([], [entry(b"t", [16]), entry(b"u", [16], offset=32)]), "'t' and 'u' overlap"),
    "same place": (build([], [entry(b"t", [16]), entry(b"u", [16])]), "overlap"),
    "alignment 0": (build([pair(b"general.alignment", 4, bytes(4))], []), "power of two"),
    "alignment 48": (build([pair(b"general.alignment", 4, struct.pack("<I", 48))], []), "power of two"),
    "alignment 2^31": (build([pair(b"general.alignment", 4, struct.pack("<I", 1 << 31))], []), "power of two"),
    "alignment of text": (build([pair(b"general.alignment", 8, text(b"32"))], []), "power of two"),
}
