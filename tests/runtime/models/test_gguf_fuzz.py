"""Thousands of damaged files of weights: each is refused with a `ModelError`, or is consistent; in bounded memory.

A finding names its seed and number: `finding(...)` with these makes the same file again. `make fuzz` runs longer, with
a fresh seed that it prints.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ramet.runtime.models import gguf

from ...security.mutation import without_guards
from . import fuzzing
from .gguf_files import write_small

DAILY, LONG = 1000, 60_000


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_small(tmp_path_factory.mktemp("fuzz") / "small.gguf")


def search(good: bytes, look: Callable[[Path], None], folder: Path, seed: int, rounds: int) -> Iterator[str]:
    """The findings of `rounds` mutations, as they are made."""
    header = len(good)
    if look is fuzzing.look_at_gguf:
        (folder / "good.gguf").write_bytes(good)
        header = min(info.offset for info in gguf.read_gguf(folder / "good.gguf").tensors.values())
    found = (fuzzing.finding(good, header, look, folder / "x.bin", seed, number) for number in range(rounds))
    return (each for each in found if each)


def test_gguf(small: bytes, tmp_path: Path) -> None:
    assert list(search(small, fuzzing.look_at_gguf, tmp_path, 1, DAILY)) == []


def test_safetensors(tmp_path: Path) -> None:
    assert list(search(fuzzing.small_safetensors(), fuzzing.look_at_safetensors, tmp_path, 1, DAILY)) == []


def test_mutations_are_of_every_kind(small: bytes) -> None:
    """Some are still accepted, and most are refused for many different reasons: else nothing is fuzzed."""
    made = [fuzzing.mutated(small, len(small) - 500, random.Random(f"1/{number}")) for number in range(300)]
    assert len(set(made)) > 290
    assert any(len(each) < len(small) for each in made) and any(len(each) > len(small) for each in made)


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["gguf", "safetensors"])
def test_longer(kind: str, small: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seed = int.from_bytes(os.urandom(4), "little")
    with capsys.disabled():
        print(f"\nfuzzing {kind}: seed={seed}, {LONG} files", flush=True)  # noqa: T201
    good = small if kind == "gguf" else fuzzing.small_safetensors()
    look = fuzzing.look_at_gguf if kind == "gguf" else fuzzing.look_at_safetensors
    assert list(search(good, look, tmp_path, seed, LONG)) == []


FAULTS = (
    "need: count >",
    "_read_tensors: base + offset",
    "_read_entry: type_id not in",
    "_read_tensors: info.offset < end",
)


@pytest.mark.parametrize("fault", FAULTS)
def test_control_a_fault_is_found(fault: str, small: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (mutant,) = (each for each in without_guards(gguf) if each.name.startswith(fault))
    monkeypatch.setattr(fuzzing, "read_gguf", mutant.load(tmp_path, monkeypatch).read_gguf)
    assert next(search(small, fuzzing.look_at_gguf, tmp_path, 1, DAILY), None)
