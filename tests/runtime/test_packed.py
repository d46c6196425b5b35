"""Packed weights: every value where the kernels look for it; the cache file, and what becomes of damaged ones."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf.constants import GGMLQuantizationType

from ramet.frontend.errors import ModelError
from ramet.kernels.cpu import library
from ramet.runtime import packed_file
from ramet.runtime.models import hub
from ramet.runtime.models.hub import ModelSource, load_spec, resolve
from ramet.runtime.models.load import load_weights, random_weights
from ramet.runtime.models.stored import stored
from ramet.runtime.native import best_dtype, weights_of
from ramet.runtime.packed import Packed, layout, pack

from .models.test_load import FAMILIES, theirs, tiny_model, write_gguf
from .natives import needs_native

pytestmark = needs_native
SPEC = replace(hub.PRESETS["tiny"], vocab=96, hidden=256, intermediate=160, tied=False)


@pytest.fixture(scope="module")
def pool() -> library.Pool:
    return library.Pool(library.load(), 2)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelSource:
    """A GGUF file, and a cache folder of its own."""
    monkeypatch.setenv("RAMET_CACHE", str(tmp_path / "cache"))
    weights = random_weights(SPEC, torch.float32)
    return write_gguf(tmp_path / "m.gguf", SPEC, weights, kind=GGMLQuantizationType.Q8_0)


def matrix(lib: library.Library, packed: Packed, name: str, columns: np.ndarray) -> np.ndarray:
    at = packed.layout.matrices[name]
    return lib.unpack(at.kind, at.n, at.k, packed.memory.view(at.offset, at.nbytes), columns.astype(np.int32))


def vector(packed: Packed, name: str) -> np.ndarray:
    at = packed.layout.vectors[name]
    return packed.memory.view(at.offset, 4 * at.count).view(np.float32)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("form", ["safetensors", "gguf"])
def test_every_value_is_in_its_place(family: str, form: str, tmp_path: Path, pool: library.Pool) -> None:
    """q, k and v one after the other; gate and up in turns of 16 rows; rotary order undone; biases, norms, heads."""
    model = tiny_model(family)
    model.save_pretrained(tmp_path)
    source = resolve(str(tmp_path))
    if form == "gguf":
        source = write_gguf(tmp_path / "m.gguf", load_spec(source), theirs(model, load_spec(source)))
    spec, lib = load_spec(source), pool.lib
    packed = pack(lib, pool, spec, "bfloat16", stored(source, spec))
    wanted = {name: w.float().numpy() for name, w in load_weights(source, spec, torch.bfloat16).items()}
    rows = np.arange(spec.intermediate)
    gate = rows // 16 * 32 + rows % 16
    for n in range(spec.layers):
        p = f"layers.{n}."
        qkv = np.concatenate([wanted[p + name] for name in "qkv"])
        assert np.array_equal(matrix(lib, packed, p + "qkv", np.arange(len(qkv))), qkv)
        assert np.array_equal(matrix(lib, packed, p + "gate_up", gate), wanted[p + "gate"])
        assert np.array_equal(matrix(lib, packed, p + "gate_up", gate + 16), wanted[p + "up"])
        for name in ("o", "down"):
            assert np.array_equal(matrix(lib, packed, p + name, np.arange(spec.hidden)), wanted[p + name])
        if spec.qkv_bias:
            exact = load_weights(source, spec, torch.float32)
            bias = np.concatenate([exact[f"{p}{name}_bias"].numpy() for name in "qkv"])
            assert np.array_equal(vector(packed, p + "qkv_bias"), bias)
        if spec.mlp_bias:
            assert np.array_equal(vector(packed, p + "gate_up_bias")[gate + 16], exact[p + "up_bias"].numpy())
            assert np.array_equal(vector(packed, p + "down_bias"), exact[p + "down_bias"].numpy())
        assert (packed.address(p + "q_norm") != 0) == spec.qk_norm
    head = wanted["embed" if spec.tied else "head"]
    assert np.array_equal(matrix(lib, packed, "head", np.arange(spec.vocab)), head)
    offset = packed.layout.embedding
    assert (offset is None) == spec.tied
    if offset is not None:
        rows16 = packed.memory.view(offset, 2 * wanted["embed"].size).view(np.uint16).astype(np.uint32) << 16
        assert np.array_equal(rows16.view(np.float32).reshape(wanted["embed"].shape), wanted["embed"])


@pytest.mark.parametrize("dtype", ["int8", "int4"])
@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "Q5_1", "F32"])
def test_fewer_bits_stay_close(dtype: str, kind: str, tmp_path: Path, pool: library.Pool) -> None:
    weights = random_weights(SPEC, torch.float32)
    source = write_gguf(tmp_path / "m.gguf", SPEC, weights, kind=GGMLQuantizationType[kind])
    spec = load_spec(source)
    packed = pack(pool.lib, pool, spec, dtype, stored(source, spec))
    wanted = load_weights(source, spec, torch.float32)["layers.0.down"].numpy()
    error = np.abs(matrix(pool.lib, packed, "layers.0.down", np.arange(spec.hidden)) - wanted).max()
    exact = dtype == "int4" and kind in ("Q4_0", "Q4_1")
    assert error <= np.abs(wanted).max() * (1e-3 if exact else {"int8": 0.005, "int4": 0.08}[dtype])
    assert packed.layout.matrices["head"].kind == library.INT8


@pytest.mark.parametrize(
    ("kind", "dtype"), [("Q4_0", "int4"), ("Q4_1", "int4"), ("Q8_0", "int8"), ("BF16", "bfloat16")]
)
def test_the_best_dtype_is_that_of_the_file(kind: str, dtype: str, tmp_path: Path) -> None:
    weights = random_weights(SPEC, torch.float32)
    source = write_gguf(tmp_path / "m.gguf", SPEC, weights, kind=GGMLQuantizationType[kind])
    assert best_dtype(source) == dtype
    assert best_dtype(resolve("random:tiny")) == "bfloat16"


def test_a_dtype_without_kernels(pool: library.Pool) -> None:
    with pytest.raises(ModelError, match="dtype='float32': the native kernels have bfloat16, int8, int4"):
        layout(pool.lib, SPEC, "float32")


# -- the cache file


def block(packed: Packed) -> np.ndarray:
    return packed.memory.view(0, packed.layout.nbytes)


def load(pool: library.Pool, source: ModelSource, dtype: str = "int8") -> Packed:
    return weights_of(pool.lib, pool, load_spec(source), source, dtype)


def file_of(source: ModelSource, dtype: str = "int8") -> Path:
    return packed_file.cache_file(Path(os.environ["RAMET_CACHE"]), source, dtype)


def test_the_second_start_reads_what_the_first_packed(model: ModelSource, pool: library.Pool) -> None:
    first, second, other = load(pool, model), load(pool, model), load(pool, model, "bfloat16")
    assert [first.cached, second.cached, other.cached] == [False, True, False]
    assert np.array_equal(block(first), block(second))
    assert file_of(model).stat().st_mode & 0o777 == 0o600
    assert sorted(file_of(model).parent.iterdir()) == sorted([file_of(model), file_of(model, "bfloat16")])


@pytest.mark.parametrize("damage", ["a bit", "zeros", "shorter", "longer", "empty", "magic", "checksum"])
def test_a_damaged_file_is_packed_again(damage: str, model: ModelSource, pool: library.Pool) -> None:
    first, path = load(pool, model), file_of(model)
    content = bytearray(path.read_bytes())
    if damage == "a bit":
        content[4096 + len(content) // 2] ^= 4
    elif damage == "zeros":
        content[8192:12288] = bytes(4096)
    elif damage in ("magic", "checksum"):
        content[0 if damage == "magic" else 45] ^= 1
    else:
        content = {"shorter": content[:-1], "longer": content + b"x", "empty": bytearray()}[damage]
    path.write_bytes(content)
    again = load(pool, model)
    assert not again.cached
    assert np.array_equal(block(first), block(again))
    assert load(pool, model).cached


def test_a_model_that_changed_is_packed_again(model: ModelSource, pool: library.Pool) -> None:
    load(pool, model)
    weights = random_weights(SPEC, torch.float32, seed=1)
    write_gguf(model.path, SPEC, weights, kind=GGMLQuantizationType.Q8_0)
    changed = load(pool, model)
    assert not changed.cached
    assert load(pool, model).cached
    status = model.path.stat()
    os.utime(model.path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert not load(pool, model).cached


def test_a_folder_that_cannot_be_written(
    model: ModelSource, pool: library.Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "occupied").write_text("")
    monkeypatch.setenv("RAMET_CACHE", str(tmp_path / "occupied"))
    assert not load(pool, model).cached
    assert not load(pool, model).cached


def test_what_killed_processes_left_is_removed(model: ModelSource, pool: library.Pool) -> None:
    folder = file_of(model).parent
    folder.mkdir(parents=True)
    old, fresh = folder / "old.part", folder / "fresh.part"
    old.write_text("")
    fresh.write_text("")
    os.utime(old, (0, 0))
    load(pool, model)
    assert not old.exists()
    assert fresh.exists()


def test_random_models_are_not_kept(tmp_path: Path, pool: library.Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAMET_CACHE", str(tmp_path))
    packed = weights_of(pool.lib, pool, hub.PRESETS["tiny"], resolve("random:tiny"), "int8")
    assert not packed.cached
    assert list(tmp_path.iterdir()) == []


PEAK = """
import resource, sys
from pathlib import Path
from ramet.kernels.cpu import library
from ramet.runtime.models import hub
from ramet.runtime.models.stored import stored
from ramet.runtime.packed import pack
source = hub.resolve("default")
spec, lib = hub.load_spec(source), library.load()
pool = library.Pool(lib, 1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
packed = pack(lib, pool, spec, "int8", stored(source, spec))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / packed.layout.nbytes)
"""


@pytest.mark.model
def test_packing_takes_little_more_memory_than_its_result() -> None:
    hub.resolve("default")
    done = subprocess.run([sys.executable, "-P", "-c", PEAK], capture_output=True, text=True, check=True, timeout=120)
    assert float(done.stdout) <= 1.3


SERVE = """
import sys
from ramet.runtime.config import Config
from ramet.runtime.engine import EngineCore
from ramet.runtime import messages as m, process
from ramet.frontend.ir import Sampling
from ramet.runtime.models import hub
from ramet.runtime.native import build
from ramet.runtime.models.tokenizer import load_tokenizer
source = hub.resolve("default")
spec, tokenizer = hub.load_spec(source), load_tokenizer(source)
class Port:
    orders = [
        m.OrderOpen("p", ""),
        m.OrderOps("p", (m.Append("0.0", "0", (tuple(tokenizer.encode("Once upon a time")),)),
                         m.Generate("0.1", "0", Sampling(temperature=0, max_tokens=4), 0))),
        m.OrderEnd("p"),
    ]
    steps = []
    def receive(self, block):
        orders, self.orders = self.orders, []
        return orders
    def send(self, step):
        self.steps.append(step)
runner = build(Config(threads=1, kv_tokens=512, context=256), spec, source)
core = EngineCore(runner, Port(), limits=Config().limits.on("cpu"), eos=spec.eos, tokenizer=tokenizer, model="m")
for _ in range(12):
    core.step()
print(len(Port.steps) > 2, [name for name in ("torch", "transformers", "gguf", "safetensors") if name in sys.modules])
"""


@pytest.mark.model
def test_an_engine_on_the_native_path_imports_no_torch(tmp_path: Path) -> None:
    hub.resolve("default")
    done = subprocess.run([sys.executable, "-P", "-c", SERVE], capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout.split("\n")[0] == "True []", done.stderr
