"""Weights without torch: the same values as `load_weights`, the same refusals, headers that lie are found out."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf.constants import GGMLQuantizationType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from ramet.frontend.errors import ModelError
from ramet.runtime.models import hub, stored
from ramet.runtime.models.gguf import read_gguf
from ramet.runtime.models.hub import ModelSource, load_spec, resolve
from ramet.runtime.models.load import load_weights, random_weights
from ramet.runtime.models.rope import tables
from ramet.runtime.models.safetensors_map import read_header
from ramet.runtime.models.spec import Rope, Spec

from .test_load import FAMILIES, theirs, tiny_model, write_gguf

SPEC = replace(hub.PRESETS["tiny"], vocab=96, hidden=256, intermediate=256)


def assembled(source: ModelSource, spec: Spec) -> dict[str, np.ndarray]:
    """Every tensor in float32, q and k in half-split order."""
    found, parts = stored.stored(source, spec), {}
    for chunk in found.chunks:
        assert chunk.first == sum(len(part) for part in parts.get(chunk.name, []))
        parts.setdefault(chunk.name, []).append(stored.values(chunk))
    shapes = spec.tensor_shapes()
    assert parts.keys() == shapes.keys()
    whole = {name: np.concatenate(parts[name]).reshape(shape) for name, shape in shapes.items()}
    for name in (
        [n for n in whole if n.rpartition(".")[2] in ("q", "k", "q_bias", "k_bias")] if found.interleaved else []
    ):
        heads = spec.heads if name.rpartition(".")[2][0] == "q" else spec.kv_heads
        pairs = whole[name].reshape(heads, -1, 2, *whole[name].shape[1:])
        whole[name] = pairs.swapaxes(1, 2).reshape(shapes[name])
    return whole


def assert_equal_to_load(source: ModelSource, spec: Spec) -> None:
    wanted = load_weights(source, spec, torch.float32)
    for name, values in assembled(source, spec).items():
        assert np.array_equal(values, wanted[name].numpy()), name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sharded", [False, True])
def test_safetensors_of_each_family(family: str, sharded: bool, tmp_path: Path) -> None:
    tiny_model(family).save_pretrained(tmp_path, max_shard_size="30KB" if sharded else "5GB")
    source = resolve(str(tmp_path))
    assert_equal_to_load(source, load_spec(source))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    tiny_model("llama").to(dtype).save_pretrained(tmp_path)
    source = resolve(str(tmp_path))
    assert_equal_to_load(source, load_spec(source))


@pytest.mark.parametrize("family", FAMILIES)
def test_gguf_of_each_family(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    model.save_pretrained(tmp_path)
    spec = load_spec(resolve(str(tmp_path)))
    source = write_gguf(tmp_path / "m.gguf", spec, theirs(model, spec))
    assert_equal_to_load(source, load_spec(source))


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "F16", "BF16"])
def test_gguf_of_each_type(kind: str, tmp_path: Path) -> None:
    """Types without kernels of their own arrive as float32, in chunks of bounded size."""
    source = write_gguf(tmp_path / "m.gguf", SPEC, random_weights(SPEC, torch.float32), kind=GGMLQuantizationType[kind])
    spec = load_spec(source)
    assert_equal_to_load(source, spec)
    types = {
        chunk.type for chunk in stored.stored(source, spec).chunks if chunk.name != "norm" and "_" not in chunk.name
    }
    assert types == {kind if kind in stored.NATIVE else "F32"}


def test_chunks_are_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "CHUNK", 10_000)
    tiny_model("smollm2").save_pretrained(tmp_path)
    source = resolve(str(tmp_path))
    spec = load_spec(source)
    assert max(stored.values(chunk).nbytes for chunk in stored.stored(source, spec).chunks) <= 10_000
    assert_equal_to_load(source, spec)


def test_random_weights_are_those_of_torch() -> None:
    spec = replace(SPEC, vocab=99, qkv_bias=True, head_dim=18, heads=3, kv_heads=3, hidden=54)
    wanted = random_weights(spec, torch.float32)
    for name, values in assembled(ModelSource("random", Path(), "", "tiny"), hub.PRESETS["tiny"]).items():
        assert values.dtype == np.float32, name
    parts: dict[str, list[np.ndarray]] = {}
    for chunk in stored.random_chunks(spec):
        parts.setdefault(chunk.name, []).append(stored.values(chunk))
    for name, tensor in wanted.items():
        assert np.allclose(np.concatenate(parts[name]).reshape(tensor.shape), tensor.numpy(), rtol=1e-5, atol=1e-6), (
            name
        )


# -- what is refused


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_values_that_are_not_finite(value: float, dtype: torch.dtype, tmp_path: Path) -> None:
    model = tiny_model("llama").to(dtype)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 5] = value
    model.save_pretrained(tmp_path)
    source = resolve(str(tmp_path))
    with pytest.raises(ModelError, match=r"tensor 'layers.1.up' has values that are not finite"):
        assembled(source, load_spec(source))


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_scales_that_are_not_finite(kind: str, tmp_path: Path) -> None:
    weights = random_weights(SPEC, torch.float32)
    path = tmp_path / "m.gguf"
    source = write_gguf(path, SPEC, weights, kind=GGMLQuantizationType[kind])
    info = read_gguf(path).tensors["blk.1.ffn_up.weight"]
    with path.open("r+b") as file:
        file.seek(info.offset)
        file.write(struct.pack("<H", 0x7C01))
    with pytest.raises(ModelError, match=r"layers.1.up"):
        assembled(source, load_spec(source))


def test_a_second_head_that_differs(tmp_path: Path) -> None:
    tiny_model("smollm2").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, tmp_path / "model.safetensors")
    source = resolve(str(tmp_path))
    assert_equal_to_load(source, load_spec(source))
    tensors["lm_head.weight"][1, 1] += 1
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="ties lm_head"):
        assembled(source, load_spec(source))


def test_missing_extra_and_misshapen_tensors(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    source, file = resolve(str(tmp_path)), tmp_path / "model.safetensors"
    spec, tensors = load_spec(source), load_file(file)
    cases = {
        "has no tensor model.norm.weight": {k: v for k, v in tensors.items() if k != "model.norm.weight"},
        "has unexpected tensor odd": tensors | {"odd": torch.zeros(1)},
        "has shape": tensors | {"model.norm.weight": torch.zeros(3)},
        "has type I32": tensors | {"model.norm.weight": torch.zeros(32, dtype=torch.int32)},
    }
    for message, changed in cases.items():
        save_file(changed, file)
        with pytest.raises(ModelError, match=message):
            stored.stored(source, spec)


GOOD = {"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, "__metadata__": {"format": "pt"}}
BAD = {
    "overlap": {
        "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        "b": {"dtype": "F32", "shape": [6], "data_offsets": [0, 24]},
    },
    "hole": {"a": {"dtype": "F32", "shape": [5], "data_offsets": [4, 24]}},
    "too long": {"a": {"dtype": "F32", "shape": [8], "data_offsets": [0, 32]}},
    "too short": {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}},
    "negative": {"a": {"dtype": "F32", "shape": [-6], "data_offsets": [0, -24]}},
    "another size": {"a": {"dtype": "F16", "shape": [2, 3], "data_offsets": [0, 24]}},
    "a boolean": {"a": {"dtype": "F32", "shape": [True, 6], "data_offsets": [0, 24]}},
    "no shape": {"a": {"dtype": "F32", "data_offsets": [0, 24]}},
    "text": {"a": "F32"},
    "a list": [],
}


def write_header(path: Path, header: object) -> Path:
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(24))
    return path


def test_a_good_header(tmp_path: Path) -> None:
    [entry] = read_header(write_header(tmp_path / "x", GOOD)).values()
    assert (entry.name, entry.type, entry.shape, entry.nbytes) == ("a", "F32", (2, 3), 24)


@pytest.mark.parametrize("name", BAD)
def test_a_header_that_lies(name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read as safetensors"):
        read_header(write_header(tmp_path / "x", BAD[name]))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_headers_are_model_errors(data: st.DataObject, tmp_path: Path) -> None:
    path = write_header(tmp_path / "x", GOOD)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        entries = read_header(path)
    except ModelError:
        return
    size = path.stat().st_size
    assert all(0 <= e.offset <= e.offset + e.nbytes <= size for e in entries.values())


# -- rotary tables


@pytest.mark.parametrize(
    "rope",
    [
        Rope(1e5),
        Rope(1e4, "linear", 4.0),
        Rope(5e5, "llama3", 8.0, 8192),
        Rope(1e4, "yarn", 4.0, 512),
        Rope(1e4, "yarn", 16.0, 512, truncate=False, mscale=0.7, mscale_all_dim=0.9),
    ],
    ids=["plain", "linear", "llama3", "yarn", "yarn with mscale"],
)
def test_rotary_tables_are_those_of_torch(rope: Rope) -> None:
    from ramet.runtime.models.decoder import rope_angles

    cos, sin = tables(rope, 64, 2000)
    angles = rope_angles(rope, 64, 2000, torch.device("cpu"))
    assert cos.dtype == sin.dtype == np.float32
    assert np.allclose(cos, angles.cos.numpy(), atol=1e-6)
    assert np.allclose(sin, angles.sin.numpy(), atol=1e-6)
