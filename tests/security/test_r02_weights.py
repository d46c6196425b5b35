"""R2: weights are read from safetensors and GGUF only, and a file that lies is refused before anything is allocated.

Positive controls: every guard of both readers, taken out by itself, is missed by the same cases; so are guards written
as asserts, under `python -O`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter, quants
from gguf.constants import GGMLQuantizationType

from ramet.frontend.errors import ModelError
from ramet.runtime.models import gguf, hub, safetensors_map
from ramet.runtime.models.names import shards

from ..runtime.models.gguf_files import BAD
from . import weight_files
from .mutation import changed, with_asserts, without_guards
from .weight_files import SAFETENSORS, gguf_findings, safetensors, safetensors_findings

# --- files that lie


def test_gguf_files_that_lie_are_refused(tmp_path: Path) -> None:
    assert gguf_findings(gguf, tmp_path) == []


def test_safetensors_that_lie_are_refused(tmp_path: Path) -> None:
    assert safetensors_findings(safetensors_map, tmp_path) == []


def test_safetensors_that_are_right_are_read(tmp_path: Path) -> None:
    """Else the cases above could be refused for another reason."""
    path = tmp_path / "t"
    path.write_bytes(safetensors({**weight_files.one(), "__metadata__": {"format": "pt"}}))
    (entry,) = safetensors_map.read_header(path).values()
    assert (entry.name, entry.type, entry.shape, entry.nbytes) == ("t", "F32", (2, 2), 16)
    path.write_bytes(safetensors(weight_files.two([0, 4], [4, 16])))
    assert [entry.nbytes for entry in safetensors_map.read_header(path).values()] == [4, 12]


def test_a_header_beyond_the_cap_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "sparse.safetensors"
    with path.open("wb") as file:
        file.write((safetensors_map.MAX_HEADER + 1).to_bytes(8, "little"))
        file.truncate(2 * safetensors_map.MAX_HEADER)
    with pytest.raises(ModelError, match="a header of 100000001 bytes"):
        safetensors_map.read_header(path)


@pytest.mark.parametrize("mutant", without_guards(gguf), ids=lambda mutant: mutant.name)
def test_control_every_guard_of_the_gguf_reader_is_needed(
    mutant: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert gguf_findings(mutant.load(tmp_path, monkeypatch), tmp_path) != []


@pytest.mark.parametrize("mutant", without_guards(safetensors_map), ids=lambda mutant: mutant.name)
def test_control_every_guard_of_the_safetensors_reader_is_needed(
    mutant: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert safetensors_findings(mutant.load(tmp_path, monkeypatch), tmp_path) != []


# --- every element is written


def poisoned(*args: Any, **kwargs: Any) -> Any:
    """Fresh memory as it may be: full of what nobody wrote."""
    return np.full_like(np.ndarray(*args, **kwargs), np.nan)


def dequantised(module: Any, path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the types of which an element was left as the allocator gave it."""
    left = []
    with monkeypatch.context() as patch:
        patch.setattr(np, "empty", poisoned)
        for type_id, (name, block, size) in module.TENSOR_TYPES.items():
            if block == 1:
                continue
            blocks = 2 * module._CHUNK_BLOCKS + 3  # more than one chunk, and no multiple of it
            raw = np.zeros(blocks * size, np.uint8)
            out = module.dequantize_blocks(raw, name)
            if out.shape != (blocks * block,) or not np.isfinite(out).all():
                left.append(f"{type_id} {name}")
    return left


def test_a_dequantiser_writes_every_element(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert dequantised(gguf, tmp_path, monkeypatch) == []
    writer = GGUFWriter(tmp_path / "t.gguf", "llama")
    matrix = np.random.default_rng(1).standard_normal((9, 64)).astype(np.float32)
    packed = quants.quantize(matrix, GGMLQuantizationType.Q8_0)
    writer.add_tensor("t", packed, raw_dtype=GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    monkeypatch.setattr(np, "empty", poisoned)
    assert np.abs(gguf.read_gguf(tmp_path / "t.gguf").dequantize("t") - matrix).max() < 0.05


UNCOVERED = {
    "the last chunk": ("range(0, blocks, _CHUNK_BLOCKS)", "range(0, blocks - _CHUNK_BLOCKS, _CHUNK_BLOCKS)"),
    "the last block": ("stop = min(start + _CHUNK_BLOCKS, blocks)", "stop = min(start + _CHUNK_BLOCKS, blocks - 1)"),
    "the first block": ("for start in range(0, blocks,", "for start in range(1, blocks,"),
}


@pytest.mark.parametrize("name", UNCOVERED)
def test_control_an_element_that_is_left_is_seen(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant = changed(gguf, name, *UNCOVERED[name]).load(tmp_path, monkeypatch)
    assert dequantised(mutant, tmp_path, monkeypatch) != []


# --- pickles

# `os.system("touch canary")` as the oldest protocol of pickle spells it, bare and behind a zip archive's name
PICKLE = b"cos\nsystem\n(S'touch canary'\ntR."
PICKLED = ["pytorch_model.bin", "model.pt", "model.pth", "consolidated.00.pth", "last.ckpt"]


def resolved(path: Path) -> str:
    """What is said of a place that has no weights but pickles."""
    try:
        hub.resolve(str(path))
    except ModelError as error:
        return str(error)
    return "accepted"


@pytest.mark.parametrize("name", PICKLED)
def test_pickled_weights_are_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_bytes(PICKLE)
    assert "pickled weights, which are never read" in resolved(tmp_path)
    assert "a single file must be a .gguf file" in resolved(tmp_path / name)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("name", ["model.gguf", "model.safetensors"])
def test_pickles_by_another_name_are_not_opened(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_bytes(PICKLE)
    source = hub.resolve(str(tmp_path))
    file = source.path if source.kind == "gguf" else shards(source.path)[0]
    with pytest.raises(ModelError, match=r"GGUF file: starts|read as safetensors"):
        (gguf.read_gguf if source.kind == "gguf" else safetensors_map.read_header)(file)
    assert not (tmp_path / "canary").exists()


def test_pickles_beside_safetensors_are_left_alone(tmp_path: Path) -> None:
    for name in (*PICKLED, "model.safetensors"):
        (tmp_path / name).write_bytes(safetensors(weight_files.one()))
    (tmp_path / "config.json").write_text("{}")
    assert hub.resolve(str(tmp_path)).kind == "safetensors"
    assert shards(tmp_path) == [tmp_path / "model.safetensors"]


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "x.bin", "sub/x.safetensors", "\0.safetensors"])
def test_a_shard_index_names_files_beside_it_only(name: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"t": name}}))
    with pytest.raises(ModelError, match="is not the name of a file beside it"):
        shards(tmp_path)


# --- python -O

OPTIMISED = """
import importlib.util, json, sys
from pathlib import Path
from ramet.frontend.errors import ModelError
kind, module, folder = sys.argv[1:]
assert False, "asserts are left out"
name = "ramet.runtime.models." + kind
if module:
    spec = importlib.util.spec_from_file_location("mutant", module)
    reader = importlib.util.module_from_spec(spec)
    sys.modules["mutant"] = reader
    spec.loader.exec_module(reader)
else:
    reader = importlib.import_module(name)
read = reader.read_gguf if kind == "gguf" else reader.read_header
told = {}
for path in sorted(Path(folder).glob("*.case")):
    try:
        read(path)
        told[path.stem] = "accepted"
    except ModelError as error:
        told[path.stem] = str(error)
    except Exception as error:
        told[path.stem] = type(error).__name__
print(json.dumps(told))
"""


def missed(kind: str, module: str, folder: Path) -> list[str]:
    """Cases that a reader does not refuse as it should under `python -O`; `module` is a mutant's file, or empty."""
    table = list((BAD if kind == "gguf" else SAFETENSORS).values())
    for number, (data, _) in enumerate(table):
        (folder / f"{number}.case").write_bytes(data)
    command = [sys.executable, "-O", "-P", "-c", OPTIMISED, kind, module, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    told = json.loads(done.stdout)
    assert len(told) == len(table)
    return [told[str(number)] for number, (_, message) in enumerate(table) if message not in told[str(number)]]


@pytest.mark.parametrize("module", [gguf, safetensors_map], ids=["gguf", "safetensors"])
def test_without_asserts_the_readers_refuse_the_same(
    module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = module.__name__.rpartition(".")[2]
    assert missed(kind, "", tmp_path) == []
    mutant = with_asserts(module).load(tmp_path, monkeypatch)  # the control
    assert len(missed(kind, mutant.__file__, tmp_path)) > 5
