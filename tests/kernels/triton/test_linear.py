"""Every kind of linear layer against float64, with bounds from its format, and to the bit across batches."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch

from ramet.frontend.errors import ModelError

pytest.importorskip("triton")

from ramet.kernels.triton import fp8, int4, int8, invariant, linear, skinny
from ramet.kernels.triton.invariant import Tile
from ramet.kernels.triton.quantise import Quantised, dequantise

from .device import DEVICE, DTYPES, close, random

pytestmark = [pytest.mark.triton, pytest.mark.gpu]
EVERY = pytest.mark.parametrize("dtype", DTYPES, ids=str)
# one rounding of the output, and float32 sums; cuBLAS may also add up parts of a sum in 16 bits
ROUNDING = {torch.float32: 2e-6, torch.float16: 2**-11, torch.bfloat16: 2**-8}
CUBLAS = 4 if DEVICE == "cuda" else 1
HALF = torch.bfloat16 if DEVICE == "cuda" else torch.float16
BITS = pytest.mark.parametrize("kind", ["int8", "int4"])


def layer(kind: str, width: int, columns: int, dtype: torch.dtype, *, bias: bool = True, **options: Any) -> Any:
    weight = random(width, columns, seed=1, dtype=dtype)
    return linear.pack(weight, random(width, seed=2, dtype=dtype) if bias else None, kind, **options)


def wanted(x: torch.Tensor, packed: Any) -> torch.Tensor:
    """What the layer stands for, in float64."""
    weight = dequantise(packed) if isinstance(packed, Quantised) else packed.weight
    y = x.double() @ weight.double().T
    return y if packed.bias is None else y + packed.bias.double()


@EVERY
@pytest.mark.parametrize("kind", ["dense", "invariant", "int8", "int4"])
@pytest.mark.parametrize(
    ("width", "columns"), [(96, 576), (100, 256), (64, 1536), (70, 200), (33, 37)], ids=lambda size: str(size)
)
def test_layers_equal_float64(kind: str, width: int, columns: int, dtype: torch.dtype) -> None:
    packed = layer(kind, width, columns, dtype, bias=columns != 1536)
    for rows in (1, 40):
        x = random(rows, columns, seed=rows, dtype=dtype)
        bound = ROUNDING[dtype] * (CUBLAS if kind == "dense" else 1)
        close(linear.linear(x, packed), wanted(x, packed), bound)


@BITS
def test_every_number_of_rows(kind: str) -> None:
    packed = layer(kind, 60, 512, HALF)
    x = random(40, 512, dtype=HALF)
    whole = wanted(x, packed)
    for rows in range(41):
        close(linear.linear(x[:rows], packed), whole[:rows], ROUNDING[HALF])


@pytest.mark.parametrize(("kind", "tiled"), [("int8", False), ("int4", False), ("int8", True), ("invariant", True)])
def test_a_row_has_the_same_bits_in_every_batch(kind: str, tiled: bool) -> None:
    """Alone, at every place, among neighbours of any size and not finite ones. Untiled layers: up to `FEW` rows."""
    packed = layer(kind, 60, 512, HALF, deterministic=tiled)
    most = 300 if tiled else skinny.FEW
    x = random(most, 512, dtype=HALF)
    whole = linear.linear(x, packed)
    for begin, end in ((0, 1), (17, 18), (0, 33), (31, 64), (most - 40, most), (most - 1, most)):
        assert torch.equal(linear.linear(x[begin:end], packed), whole[begin:end])
    spoiled = x.clone()
    spoiled[1::2] = torch.nan
    assert torch.equal(linear.linear(spoiled, packed)[::2], whole[::2])
    turned = linear.linear(x.flip(0), packed).flip(0)
    assert torch.equal(turned, whole)


@pytest.mark.parametrize("width", [32, 64, 128, 256])
def test_row_classes_of_the_invariant_product_agree(width: int) -> None:
    """Few rows take 64 at a time and many 128: the same instruction, so the same bits."""
    tile = Tile(width, 64, (4, 3))
    packed = invariant.pack(random(300, 192, seed=1, dtype=HALF), None, tile)
    x = random(200, 192, dtype=HALF)
    whole = invariant.linear(x, packed)
    close(whole, wanted(x, packed), ROUNDING[HALF])
    for begin in (0, 64, 136):
        assert torch.equal(invariant.linear(x[begin : begin + 64], packed), whole[begin : begin + 64])


def test_the_vocabulary_layer_keeps_8_bits() -> None:
    assert layer("int4", 16 * 64, 64, HALF).form.bits == 4
    assert layer("int4", 16 * 64 + 1, 64, HALF).form.bits == 8


@pytest.mark.parametrize("module", [int8, int4], ids=["int8", "int4"])
def test_wide_panels_and_one_split(module: ModuleType) -> None:
    """A layer that fills the chip with panels: wide ones, and no partial sums."""
    packed = module.pack(random(128 * 132, 64, seed=1, dtype=HALF), random(128 * 132, seed=2, dtype=HALF))
    assert packed.form.panel == 128 and skinny.splits(*packed.words.shape[:2])[0] == 1
    x = random(2, 64, dtype=HALF)
    close(linear.linear(x, packed), wanted(x, packed), ROUNDING[HALF])


@EVERY
@BITS
def test_many_rows_are_expanded(kind: str, dtype: torch.dtype) -> None:
    """The expanded weight is rounded to the dtype once more, so each product carries two roundings."""
    packed = layer(kind, 130, 576, dtype)
    x = random(skinny.FEW + 1, 576, dtype=dtype)
    weight = dequantise(packed).to(dtype)
    close(linear.linear(x, packed), x.double() @ weight.double().T + packed.bias.double(), 2 * CUBLAS * ROUNDING[dtype])


def test_expansion_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = layer("int4", 200, 256, torch.float32)
    x = random(skinny.FEW + 1, 256)
    whole = linear.linear(x, packed)
    monkeypatch.setattr(skinny, "_EXPANDED", 64 * 256 * 4)
    close(linear.linear(x, packed), whole, ROUNDING[torch.float32])


@BITS
def test_splits_are_added_in_order(kind: str) -> None:
    packed = layer(kind, 64, 2048, torch.float32)
    count, share = skinny.splits(*packed.words.shape[:2])
    assert count > 1 and (count - 1) * share < packed.words.shape[1] <= count * share
    x = random(3, 2048)
    close(linear.linear(x, packed), wanted(x, packed), ROUNDING[torch.float32])


@pytest.mark.parametrize("kind", ["invariant", "int8", "int4"])
def test_strides(kind: str) -> None:
    packed = layer(kind, 70, 256, HALF)
    wide = random(5, 600, dtype=HALF)
    across = random(256, 5, dtype=HALF).T
    for x in (wide[:, 3:259], wide[::2, :256], across):
        assert torch.equal(linear.linear(x, packed), linear.linear(x.contiguous(), packed))


@pytest.mark.skipif(DEVICE == "cpu", reason="the packed instructions are the GPU's own")
@BITS
def test_packed_instructions_unpack_the_same_integers(kind: str) -> None:
    packed = layer(kind, 128, 1024, torch.bfloat16)
    x = random(32, 1024, dtype=torch.bfloat16)
    assert packed.fast
    assert torch.equal(linear.linear(x, packed), linear.linear(x, replace(packed, fast=False)))
    many = random(100, 1024, dtype=torch.bfloat16)
    assert torch.equal(linear.linear(many, packed), linear.linear(many, replace(packed, fast=False)))


def test_activations_are_rounded_to_e4m3_by_row() -> None:
    x = random(5, 570, dtype=torch.bfloat16) * torch.tensor([1, 1e-3, 1e3, 0, 1], device=DEVICE)[:, None].bfloat16()
    found, scale = fp8.round_activations(x, 576)
    steps = x.float().abs().amax(1, keepdim=True)
    steps = steps / torch.full_like(steps, fp8.LARGEST)  # by a number, torch would multiply with its reciprocal
    steps = torch.where(steps > 0, steps, 1.0)
    assert torch.equal(scale, steps)
    assert torch.equal(found[:, 570:].float(), torch.zeros(5, 6, device=DEVICE))
    ratio, rounded = x.float() / steps, found[:, :570].float()
    exact = ratio.to(torch.float8_e4m3fn).float()
    if DEVICE == "cuda":
        assert torch.equal(rounded, exact)
    # the interpreter rounds ties up, truncates subnormals, and does not carry into the next power of two
    checked = (exact.abs().log2() % 1 != 0) & (exact.abs() >= 2**-6)
    assert checked.float().mean() > 0.5
    assert torch.equal((rounded - ratio).abs()[checked], (exact - ratio).abs()[checked])


@pytest.mark.filterwarnings("ignore:All-NaN slice")
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_activations_that_are_not_finite_do_not_become_finite_in_8_bits(value: float) -> None:
    """Whatever the weight is: 0 x inf is no number either. The sampler must see that the row has failed."""
    x = random(3, 40, dtype=torch.bfloat16)
    x[1, 7] = value
    x[2] = value
    found, scale = fp8.round_activations(x, 48)
    assert scale.isfinite().flatten().tolist() == [True, False, False]
    assert bool(found[0].float().isfinite().all())
    weight = random(32, 40, seed=1, dtype=torch.bfloat16)
    weight[0] = 0
    try:
        packed = linear.pack(weight, None, "fp8")
    except ModelError as error:
        pytest.skip(str(error))
    product = linear.linear(x, packed).isfinite()
    assert bool(product[0].all()) and not bool(product[1:].any())


@pytest.mark.parametrize(("width", "columns"), [(96, 576), (100, 570)])
def test_fp8_is_the_product_of_what_was_rounded(width: int, columns: int) -> None:
    weight = random(width, columns, seed=1, dtype=torch.bfloat16)
    bias = random(width, seed=2, dtype=torch.bfloat16)
    try:
        packed = linear.pack(weight, bias, "fp8")
    except ModelError as error:
        pytest.skip(str(error))
    for rows in (1, 17, 70):
        x = random(rows, columns, seed=rows, dtype=torch.bfloat16)
        found = linear.linear(x, packed)
        rounded, scale = fp8.round_activations(x, packed.weight.shape[1])
        y = (rounded.double() * scale.double()) @ (packed.weight.double() * packed.scale.T.double()).T
        close(found, (y + packed.bias.double())[:, :width], 2**-7)
        exact = x.double() @ weight.double().T + bias.double()
        error = (found.double() - exact).norm() / exact.norm()
        assert error < (0.045 if DEVICE == "cuda" else 0.09)  # see above: 2 % of the interpreter's values are halved
    assert linear.linear(random(0, columns, dtype=torch.bfloat16), packed).shape == (0, width)


def test_memory() -> None:
    """Bytes of a layer are those of its format, and nothing of the dense weight stays."""
    weight = random(128, 1024, dtype=HALF)
    dense = linear.pack(weight, None)
    assert dense.nbytes == weight.nbytes and dense.weight.data_ptr() == weight.data_ptr()
    assert linear.pack(weight, None, deterministic=True).weight.data_ptr() == weight.data_ptr()
    for kind, each in (("int8", 1 + 2 / 128), ("int4", 0.5 + 2 / 64)):
        packed = linear.pack(weight, None, kind)
        assert weight.numel() * each <= packed.nbytes <= weight.numel() * each + 1024
        assert {packed.words.data_ptr(), packed.scales.data_ptr()}.isdisjoint({weight.data_ptr()})


def test_refusals() -> None:
    weight = random(16, 64)
    with pytest.raises(ModelError, match="weights='int2': use one of dense"):
        linear.pack(weight, None, "int2")
    with pytest.raises(ModelError, match="deterministic=True"):
        linear.pack(weight, None, "fp8", deterministic=True)
    with pytest.raises(ModelError, match="use dtype bfloat16"):
        linear.pack(weight, None, "fp8")
    for kind in linear.KINDS:
        with pytest.raises(ModelError, match="not \\[out, in\\]"):
            linear.pack(weight[0], None, kind)
        with pytest.raises(ModelError, match="does not fit 16 outputs"):
            linear.pack(weight, random(15), kind)
    with pytest.raises(ModelError, match="convert one of them"):
        linear.linear(random(2, 64, dtype=torch.float16), int8.pack(weight, None))
