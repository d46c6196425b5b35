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

from .gguf_files import BAD, build, entry, pair, write_small


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
