"""What a forward must read and multiply at least. In: a model as one runner has it, a workload, limits. Out: seconds.

A floor is the larger of bytes / bandwidth and operations / rate. Bytes: the packed weights once a forward (scales
included; the head where logits are wanted), K and V of every position that is seen, once for each sequence or once for
all that share them. Operations: two for each weight of a matrix and token, at the rate of the operands (4-bit weights
are multiplied as 8-bit ones), and attention's 4 * layers * heads * head_dim for each pair of a token and a position it
sees, at the rate of bf16, which K and V have under all weights. Embedding rows, norms and activations are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

from gpu_parts.floors import head_weights, kv_bytes, linear_weights

from cpu_parts.limits import Limits
from ramet.kernels.cpu.library import Library
from ramet.runtime.models.spec import Spec
from ramet.runtime.packed import layout

SHORT = {"bfloat16": "bf16", "int8": "int8", "int4": "int8"}  # dtype of weights → rate of their products


@dataclass(frozen=True, slots=True)
class Floor:
    """Seconds, and what takes them: "bytes" or "operations"."""

    seconds: float
    binds: str


@dataclass(frozen=True, slots=True)
class Shape:
    """A model with weights of `dtype`, which take `layers` and `head` bytes."""

    spec: Spec
    dtype: str
    layers: int
    head: int

    def floor(self, limits: Limits, *, tokens: int, rows: int, pairs: float, positions: float) -> Floor:
        """Of a forward of `tokens` tokens that wants the logits of `rows`, looks at `pairs` of tokens and positions,
        and reads K and V of `positions`."""
        spec = self.spec
        rate = limits.bf16 if SHORT[self.dtype] == "bf16" else limits.int8
        moved = self.layers + (self.head if rows else 0) + positions * kv_bytes(spec)
        products = 2.0 * (tokens * linear_weights(spec) + rows * head_weights(spec))
        attention = 4.0 * spec.layers * spec.heads * spec.head_dim * pairs
        reading, computing = moved / limits.bandwidth, products / rate + attention / limits.bf16
        return Floor(max(reading, computing), "bytes" if reading > computing else "operations")


def shape(spec: Spec, dtype: str, lib: Library | None = None) -> Shape:
    """As the native kernels pack it, or (without `lib`) dense in bfloat16."""
    if lib is None:
        return Shape(spec, "bfloat16", 2 * linear_weights(spec), 2 * head_weights(spec))
    sizes = {name: matrix.nbytes for name, matrix in layout(lib, spec, dtype).matrices.items()}
    head = sizes.pop("head")
    return Shape(spec, dtype, sum(sizes.values()), head)


def prefill(model: Shape, limits: Limits, length: int) -> Floor:
    """A prompt, and the logits of its last token; a token sees itself and all before."""
    return model.floor(limits, tokens=length, rows=1, pairs=length * (length + 1) / 2, positions=length)


def decode(model: Shape, limits: Limits, batch: int, context: float, *, shared: float = 0.0) -> Floor:
    """A step of `batch` sequences that see `context` positions each, the first `shared` of which are the same."""
    positions = shared + batch * (context - shared)
    return model.floor(limits, tokens=batch, rows=batch, pairs=batch * context, positions=positions)


def forked(model: Shape, limits: Limits, branches: int, prefix: int, own: int, made: int) -> Floor:
    """One prefix, `branches` continuations of `own` tokens each as one forward that wants a token of each, and then a
    step for each of the `made` tokens but the first."""
    seen = prefix * (prefix + 1) / 2 + branches * (own * prefix + own * (own + 1) / 2)
    tokens = prefix + branches * own
    parts = [model.floor(limits, tokens=tokens, rows=branches, pairs=seen, positions=tokens)]
    parts += [decode(model, limits, branches, prefix + own + step, shared=prefix) for step in range(1, made)]
    total = sum(part.seconds for part in parts)
    reading = sum(part.seconds for part in parts if part.binds == "bytes")
    return Floor(total, "bytes" if reading > total / 2 else "operations")
