"""Every kernel compiles for sm_90, without spills and within a program's shared memory. No GPU is needed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
import torch

from ramet.frontend.errors import ModelError

pytest.importorskip("triton")

from ramet.kernels.triton import aot, invariant
from ramet.kernels.triton.aot import SHARED_LIMIT, Report, all_variants, compile_variant, compiled, main

if TYPE_CHECKING:
    from ramet.kernels.triton.aot import Variant

pytestmark = [
    pytest.mark.aot,
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter replaces the compiler"),
]
VARIANTS: dict[str, Variant] = {variant.name: variant for variant in all_variants()}


@pytest.fixture(scope="module")
def reports(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[Report]]]:
    """Reports to come of the variants that this run tests, two at a time; from Triton's cache where it has them."""
    named = [item.callspec.params.get("name") for item in request.session.items if hasattr(item, "callspec")]
    with ThreadPoolExecutor(2) as pool:
        yield {name: pool.submit(compile_variant, VARIANTS[name]) for name in dict.fromkeys(named) if name in VARIANTS}


@pytest.mark.parametrize("name", VARIANTS)
def test_it_compiles_without_spills(reports: dict[str, Future[Report]], name: str) -> None:
    report = reports[name].result()
    assert report.spills == 0
    assert report.shared <= SHARED_LIMIT
    assert 0 < report.registers <= 255


@pytest.mark.parametrize("name", [name for name in VARIANTS if name.startswith(("rmsnorm", "rope", "silu"))])
def test_dense_kernels_use_16_byte_accesses(reports: dict[str, Future[Report]], name: str) -> None:
    counts = reports[name].result().instructions
    assert counts["LDG.128"] > 0 and counts["STG.128"] > 0


@pytest.mark.parametrize("vocab", [128256, 151936, 262208])
def test_a_mask_in_the_batch_does_not_move_the_logits_of_scan(vocab: int) -> None:
    """Else a row's mass would be summed in another order because another row has a mask."""
    plain, masked = (compile_variant(VARIANTS[f"sample/scan/{kind}v{vocab}"]) for kind in ("", "masked/"))
    assert masked.shared == plain.shared
    assert masked.instructions == plain.instructions


@pytest.mark.parametrize("cuts", [False, True])
def test_scores_of_blocks_are_rounded_once_whatever_the_batch_needs(cuts: bool) -> None:
    """Left to the compiler, product and sum were one instruction without draws that are cut, and two with them."""
    variant = VARIANTS["sample/settle/v128256"]
    code = compiled(replace(variant, constants=variant.constants | {"CUTS": cuts})).asm["ttir"]
    assert code.count("math.fma") == 1


@pytest.mark.parametrize("number", range(len(invariant.variants())))
def test_the_invariant_product_fits_a_device_of_99_kib(number: int) -> None:
    """sm_86 and sm_89: nothing else that is launched in 16 bits for heads of up to 128 needs more."""
    assert compile_variant(invariant.variants(99 << 10)[number], 89).shared <= 99 << 10


def test_fewer_stages_are_all_that_changes() -> None:
    for width in (64, 2048, 4096, 132 * 128):
        tile = invariant.tile_for(width, torch.bfloat16)
        small = invariant.fitted(tile, torch.bfloat16, 99 << 10)
        assert replace(small, stages=tile.stages) == tile != small
        assert min(small.stages) >= 2
        assert invariant.fitted(tile, torch.bfloat16, SHARED_LIMIT) == tile


def test_a_wrong_signature_is_refused() -> None:
    variant = VARIANTS["table/gather"]
    without = {key: kind for key, kind in variant.signature.items() if key != "feed"}
    with pytest.raises(ModelError, match="signature misses feed"):
        compile_variant(replace(variant, signature=without))
    with pytest.raises(ModelError, match="constants miss BLOCK"):
        compile_variant(replace(variant, constants={}))
    with pytest.raises(ModelError, match="aligned has unknown rows"):
        compile_variant(replace(variant, aligned=("rows",)))


def test_a_failing_disassembler_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from triton import knobs

    with pytest.raises(ModelError, match=r"cuobjdump ended with [1-9]\d*: \S"):
        aot._inspect(b"not a cubin")
    tool = tmp_path / "cuobjdump"
    tool.write_text("no program")
    monkeypatch.setattr(knobs, "nvidia", SimpleNamespace(cuobjdump=SimpleNamespace(path=str(tool))))
    with pytest.raises(ModelError, match=r"cuobjdump could not be started: .*Permission denied"):
        aot._inspect(b"not a cubin")


def test_the_table_lists_what_was_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table/"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == ["table/gather", "table/scatter"]
    assert lines[-1] == "2 variants for sm_90, 0 failed"
