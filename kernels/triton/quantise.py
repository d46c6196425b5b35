"""Weight-only quantisation. In: a dense weight `[out, in]`. Out: 8- or 4-bit codes in the order in which `skinny` reads
them, with a bfloat16 scale per group of inputs, and the way back. Plain torch, on the device of the weight.

An int16 word holds `16 / bits` codes, `slice` inputs apart; a block is `slice` words of one output; a panel is `panel`
outputs. A tile (panel x block) is contiguous, so that a program streams one run of memory, and neighbouring codes of
two words sit in the same bits of one register, as the tensor core wants its operands: unpacking is a shift and a mask.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ramet.frontend.errors import ModelError

MULTIPROCESSORS = 132  # of an H100 and an H200; the same on every chip, or the summing order would depend on it
FLOATS = (torch.bfloat16, torch.float16, torch.float32)
_CHUNK = 1 << 24  # weights quantised at a time, so that temporaries stay small beside the model
_SHRINK = tuple(1.15 - 0.05 * step for step in range(10))  # candidates for an int4 scale, relative to 8 codes a side


@dataclass(frozen=True, slots=True)
class Form:
    """How codes of `bits` (8 or 4) lie in memory: `panel` outputs x `slice` words of `codes` each; `chain` slices share
    a scale."""

    bits: int
    slice: int
    panel: int

    @property
    def codes(self) -> int:
        """Codes in a word."""
        return 16 // self.bits

    @property
    def block(self) -> int:
        """Inputs in a block."""
        return self.slice * self.codes

    @property
    def chain(self) -> int:
        """Slices that share a scale: groups of 128 or 64 inputs for int8, of 64 for int4."""
        return 2 if self.bits == 8 or self.slice == 32 else 1

    @property
    def groups(self) -> int:
        """Scales of one output in a block."""
        return self.codes // self.chain


@dataclass(frozen=True, slots=True)
class Quantised:
    """A linear layer of `width` outputs and `columns` inputs. `words` `[panels, blocks, panel, slice] int16`; `scales`
    `[panels * blocks + 1, groups, panel] bfloat16` (the last one is padding that a prefetch reads); `bias` `[width]`.
    `tiled`: every number of rows takes the same kernel, so that a row's bits do not depend on the others. `fast`: the
    device unpacks two codes per instruction."""

    words: torch.Tensor
    scales: torch.Tensor
    bias: torch.Tensor | None
    form: Form
    width: int
    columns: int
    dtype: torch.dtype
    tiled: bool
    fast: bool

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return self.words.nbytes + self.scales.nbytes + (0 if self.bias is None else self.bias.nbytes)


def form(bits: int, width: int, columns: int) -> Form:
    """The layout for a `[width, columns]` weight. Long slices halve the loop's overhead; short ones are for inputs that
    would otherwise be padded. Wide panels read the activations half as often, and are for layers that fill the chip
    with them."""
    long = columns % (64 * 16 // bits) == 0
    return Form(bits, 64 if long else 32, 128 if width >= 128 * MULTIPROCESSORS else 64)


def check(weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    """Raises `ModelError` for a weight or a bias that no linear layer can hold."""
    if weight.ndim != 2 or 0 in weight.shape:
        raise ModelError(f"weight: shape {tuple(weight.shape)} is not [out, in]; give a matrix")
    if weight.dtype not in FLOATS:
        raise ModelError(f"weight: dtype {weight.dtype} cannot be packed; convert it to bfloat16, float16 or float32")
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        raise ModelError(f"bias: shape {tuple(bias.shape)} does not fit {weight.shape[0]} outputs; give [out]")


def quantise(weight: torch.Tensor, bias: torch.Tensor | None, bits: int, *, tiled: bool = False) -> Quantised:
    """Quantise `weight` `[out, in]` to 8 or 4 bits and pack it; keeps no reference to it.

    Relative RMS error of the weights, measured on normal ones: 0.0065 (int8, groups of 128), 0.0060 (int8, groups of
    64), 0.091 (int4, groups of 64). Raises `ModelError` for another number of bits, a shape or dtype that is not a
    linear layer's, and a weight that is not finite.
    """
    check(weight, bias)
    if bits not in (8, 4):
        raise ModelError(f"bits={bits}: use 8 or 4")
    if not bool(torch.isfinite(weight).all()):
        raise ModelError(
            f"weight {tuple(weight.shape)}: not every value is finite; use weights='dense' to look into it"
        )
    width, columns = weight.shape
    shape = form(bits, width, columns)
    panels, blocks = -(-width // shape.panel), -(-columns // shape.block)
    # every element of both is written below: by the loop over all panels, and the padding at once
    words = torch.empty((panels, blocks, shape.panel, shape.slice), dtype=torch.int16, device=weight.device)
    scales = torch.zeros((panels * blocks + 1, shape.groups, shape.panel), dtype=torch.bfloat16, device=weight.device)
    step = max(1, _CHUNK // (shape.panel * columns))
    for at in range(0, panels, step):
        part = weight[at * shape.panel : (at + step) * shape.panel]
        count = min(step, panels - at)
        found = _pack(part, shape, count, blocks)
        words[at : at + count] = found[0]
        scales[at * blocks : (at + count) * blocks] = found[1]
    kept = None if bias is None else bias.to(weight.dtype).contiguous().clone()
    fast = weight.dtype is torch.bfloat16 and weight.is_cuda and torch.cuda.get_device_capability(weight.device)[0] >= 9
    return Quantised(words, scales, kept, shape, width, columns, weight.dtype, tiled, fast)


def _pack(part: torch.Tensor, shape: Form, panels: int, blocks: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Words `[panels, blocks, panel, slice]` and scales `[panels * blocks, groups, panel]` of some rows."""
    rows, columns = part.shape
    padding = (0, blocks * shape.block - columns, 0, panels * shape.panel - rows)
    full = torch.nn.functional.pad(part.to(torch.float32), padding)
    grouped = full.view(panels, shape.panel, blocks, shape.groups, shape.chain * shape.slice)
    scale, codes = (_round8 if shape.bits == 8 else _round4)(grouped)
    sliced = codes.view(panels, shape.panel, blocks, shape.codes, shape.slice)
    shifts = torch.arange(shape.codes, dtype=torch.int32, device=part.device) * shape.bits
    merged = (sliced << shifts[:, None]).sum(3, dtype=torch.int32)
    words = merged.view(torch.int16)[..., ::2]  # the low half of each int32
    return words.permute(0, 2, 1, 3), scale.permute(0, 2, 3, 1).reshape(panels * blocks, shape.groups, shape.panel)


def _round8(groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Symmetric: the largest magnitude is 127. Scales `[...] bfloat16`, codes `[..., group] int32`, two's complement in
    8 bits. Rounding uses the scale as stored, so that its rounding costs nothing."""
    scale = (groups.abs().amax(-1) / 127).to(torch.bfloat16)
    codes = (groups / _divisor(scale)).round_().clamp_(-127, 127)
    return scale, codes.to(torch.int32) & 0xFF


def _round4(groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The signed scale puts the extreme value at -8, so that all 16 codes are used; of several sizes of it, the one
    with the least squared error is kept. Scales `[...] bfloat16`, codes `[..., group] int32`, 0 to 15, zero is 8."""
    low, high = groups.amin(-1), groups.amax(-1)
    base = torch.where(high >= -low, high, low) / -8
    unit = groups / _divisor(base)  # errors are compared in this, so that their squares neither overflow nor vanish
    best, error = torch.zeros_like(base, dtype=torch.bfloat16), torch.full_like(base, torch.inf)
    for factor in _SHRINK:
        scale = (base * factor).to(torch.bfloat16)
        ratio = scale.to(torch.float32)[..., None] / _divisor(base)
        found = (unit / _divisor(ratio[..., 0])).round_().clamp_(-8, 7).mul_(ratio).sub_(unit).square_().sum(-1)
        best, error = torch.where(found < error, scale, best), torch.minimum(found, error)
    codes = (groups / _divisor(best)).round_().clamp_(-8, 7)
    return best, codes.to(torch.int32) + 8


def _divisor(scale: torch.Tensor) -> torch.Tensor:
    wide = scale.to(torch.float32)[..., None]
    return torch.where(wide == 0, 1.0, wide)


def dequantise(layer: Quantised) -> torch.Tensor:
    """The weight `[width, columns] float32` that `layer` stands for, exactly."""
    shape = layer.form
    panels, blocks = layer.words.shape[:2]
    words = layer.words.to(torch.int32).permute(0, 2, 1, 3)[:, :, :, None, :]
    shifts = torch.arange(shape.codes, dtype=torch.int32, device=words.device) * shape.bits
    codes = (words >> shifts[:, None]) & ((1 << shape.bits) - 1)
    codes = torch.where(codes > 127, codes - 256, codes) if shape.bits == 8 else codes - 8
    scale = layer.scales[:-1].view(panels, blocks, shape.groups, shape.panel).permute(0, 3, 1, 2).to(torch.float32)
    values = codes.reshape(panels, shape.panel, blocks, shape.groups, -1) * scale[..., None]
    return values.reshape(panels * shape.panel, -1)[: layer.width, : layer.columns].contiguous()
