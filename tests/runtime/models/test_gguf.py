"""The GGUF reader: equal to the gguf package on good files, a ModelError (and nothing else) on bad ones."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter, quants
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ramet.frontend.errors import ModelError
from ramet.runtime.models.gguf import TENSOR_TYPES, GGUFFile, read_gguf


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


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_small(tmp_path_factory.mktemp("gguf") / "small.gguf")


def read_bytes(data: bytes, path: Path) -> GGUFFile:
    path.unlink(missing_ok=True)  # a new file: an earlier map of the old one must stay valid
    path.write_bytes(data)
    return read_gguf(path)


def assert_equal_to_package(path: Path) -> None:
    ours, theirs = read_gguf(path), GGUFReader(path)
    fields = {k: f.contents() for k, f in theirs.fields.items() if not k.startswith("GGUF.")}
    assert ours.metadata == fields
    assert list(ours.tensors) == [t.name for t in theirs.tensors]
    for tensor in theirs.tensors:
        info = ours.tensors[tensor.name]
        assert (info.type, info.offset, info.nbytes) == (tensor.tensor_type.name, tensor.data_offset, tensor.n_bytes)
        assert info.shape == tuple(reversed([int(n) for n in tensor.shape]))
        assert ours.raw(tensor.name).tobytes() == tensor.data.tobytes()
        expected = quants.dequantize(tensor.data, tensor.tensor_type)
        got = ours.dequantize(tensor.name)
        assert got.dtype == np.float32
        assert got.shape == info.shape
        assert np.array_equal(got, expected.reshape(info.shape))


def test_equal_to_the_package(tmp_path: Path) -> None:
    write_small(tmp_path / "small.gguf")
    assert_equal_to_package(tmp_path / "small.gguf")


def test_values_have_the_types_that_were_written(small: bytes, tmp_path: Path) -> None:
    file = read_bytes(small, tmp_path / "x.gguf")
    assert file.version == 3
    assert file.metadata["a.text"] == "žluťoučký kůň 🐎"
    assert file.metadata["a.words"] == ["a", "", "Ġthe", "日本"]
    assert file.metadata["a.bool"] is True
    assert file.metadata["a.flags"] == [True, False]
    assert [file.metadata[f"a.{k}"] for k in ("u64", "i64", "u8", "i16")] == [1 << 60, -(1 << 60), 200, -300]
    with pytest.raises(ValueError, match="read-only"):
        file.raw("f32")[0] = 1
    with pytest.raises(ModelError, match="no tensor 'nope'"):
        file.raw("nope")


def test_version_2_is_read_and_others_are_not(small: bytes, tmp_path: Path) -> None:
    assert read_bytes(small[:4] + struct.pack("<I", 2) + small[8:], tmp_path / "x").metadata["a.u8"] == 200
    for version in (0, 1, 4, 3 << 24):  # the last one: big endian
        with pytest.raises(ModelError, match="version"):
            read_bytes(small[:4] + struct.pack("<I", version) + small[8:], tmp_path / "x")


def test_the_table_of_types_is_the_packages() -> None:
    for type_id, (name, block, size) in TENSOR_TYPES.items():
        assert GGMLQuantizationType(type_id).name == name
        assert GGML_QUANT_SIZES[GGMLQuantizationType(type_id)] == (block, size)


@pytest.mark.parametrize("type_id", sorted(TENSOR_TYPES))
@pytest.mark.parametrize("rows", [1, 7, 40])
def test_every_type_is_dequantised_as_by_the_package(type_id: int, rows: int, tmp_path: Path) -> None:
    kind, (name, block, size) = GGMLQuantizationType(type_id), TENSOR_TYPES[type_id]
    rng = np.random.default_rng(type_id)
    width = 512
    try:
        data = quants.quantize(rng.standard_normal((rows, width)).astype(np.float32), kind)
    except NotImplementedError:  # the package reads K-quants but does not write them: any bytes with tame scales do
        blocks = rng.integers(0, 256, (rows * width // block, size), dtype=np.uint8)
        scales = (np.abs(rng.standard_normal(len(blocks))) * 0.01).astype(np.float16).view(np.uint8).reshape(-1, 2)
        for at in {"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,)}.get(name, (0, 2)):
            blocks[:, at : at + 2] = scales
        data = blocks.reshape(rows, -1)
    writer = GGUFWriter(tmp_path / "t.gguf", "llama")
    writer.add_tensor("t", data, raw_dtype=None if name in ("F32", "F16") else kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert_equal_to_package(tmp_path / "t.gguf")
    got = read_gguf(tmp_path / "t.gguf").dequantize("t")
    assert np.isfinite(got).all()
    assert np.count_nonzero(got) > got.size // 2


def test_dequantising_in_chunks_writes_every_element(tmp_path: Path) -> None:
    """More blocks than one chunk, and not a multiple of it."""
    matrix = np.random.default_rng(1).standard_normal((4100, 64)).astype(np.float32)
    writer = GGUFWriter(tmp_path / "t.gguf", "llama")
    writer.add_tensor("t", quants.quantize(matrix, GGMLQuantizationType.Q8_0), raw_dtype=GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    got = read_gguf(tmp_path / "t.gguf").dequantize("t")
    assert np.abs(got - matrix).max() < 0.02


# --- bad files


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


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused_without_allocating(case: str, tmp_path: Path) -> None:
    data, message = BAD[case]
    tracemalloc.start()
    try:
        with pytest.raises(ModelError) as caught:
            read_bytes(data, tmp_path / "bad.gguf")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert message in str(caught.value)
    assert "bad.gguf" in str(caught.value)
    assert peak < 2 << 20


def test_the_builder_makes_good_files(tmp_path: Path) -> None:
    """Else the cases above could be refused for another reason."""
    alignment = pair(b"general.alignment", 4, struct.pack("<I", 64))
    file = read_bytes(build([alignment], [entry(b"t", [16]), entry(b"u", [4], offset=64)], 320), tmp_path / "x")
    assert [t.offset % 64 for t in file.tensors.values()] == [0, 0]
    assert read_bytes(build([], [entry(b"t", [64])]), tmp_path / "y").dequantize("t").tolist() == [0.0] * 64


def test_a_missing_file_or_a_directory_is_a_model_error(tmp_path: Path) -> None:
    for path in (tmp_path / "none.gguf", tmp_path):
        with pytest.raises(ModelError, match="cannot be read"):
            read_gguf(path)


def test_every_truncation_is_refused(small: bytes, tmp_path: Path) -> None:
    """The last tensor ends at the end of the file (the writer pads, the padding may go)."""
    file = read_bytes(small, tmp_path / "whole")
    end = max(t.offset + t.nbytes for t in file.tensors.values())
    for length in range(end):
        with pytest.raises(ModelError):
            read_bytes(small[:length], tmp_path / "cut.gguf")
    assert read_bytes(small[:end], tmp_path / "cut.gguf").tensors == file.tensors


def check_consistent(file: GGUFFile, size: int) -> None:
    for name, info in file.tensors.items():
        assert 0 < info.offset <= size - info.nbytes
        assert len(file.raw(name)) == info.nbytes
        assert file.dequantize(name).shape == info.shape


@settings(max_examples=800, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_flipped_bytes_never_cause_anything_but_a_model_error(small: bytes, tmp_path: Path, data: Any) -> None:
    broken = bytearray(small)
    header = len(small) - 500
    for _ in range(data.draw(st.integers(1, 4))):
        broken[data.draw(st.integers(4, header))] = data.draw(st.sampled_from([0, 1, 8, 9, 32, 127, 128, 255]))
    tracemalloc.start()
    try:
        check_consistent(read_bytes(bytes(broken), tmp_path / "x.gguf"), len(broken))
    except ModelError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 2 << 20


@pytest.mark.model
def test_the_default_model_is_read_as_by_the_package() -> None:
    from ramet.runtime.models import hub

    assert_equal_to_package(hub.resolve().path)
