"""One decoder for the Llama family: Llama 2 and 3, SmolLM2, Mistral, Qwen2, Qwen3.

In: a `Spec`, its weights by canonical name, then batches as plans of `ramet.kernels`. Out: hidden states and logits.
The residual stream, norms, rotation and attention are float32; linear layers compute in the weights' dtype.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ramet.frontend.errors import ModelError
from ramet.kernels import ops as ops_for
from ramet.kernels.ops import Angles, HeadNorms, Layout, Norm, Ops, Plan
from ramet.runtime.models.rope import attention_factor as attention_factor
from ramet.runtime.models.rope import inverse_frequencies as frequencies
from ramet.runtime.models.spec import Rope, Spec

Weights = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Layer:
    """Packed weights of a layer: q, k and v are one matrix, gate and up another."""

    attn_norm: Norm
    qkv: Any
    heads: HeadNorms | None
    o: Any
    mlp_norm: Norm
    gate_up: Any
    down: Any
    window: int | None


class Decoder:
    """Llama-family decoder on one device. `dtype` is float32 or bfloat16, on a GPU also float16, for weights, linear
    layers and the KV cache.

    Copies what it needs of `weights` (fused and packed), so the caller may drop them. Raises `ModelError` for a dtype
    that is not supported and for weights that do not match `spec.tensor_shapes()`.
    """

    def __init__(
        self,
        spec: Spec,
        weights: Weights,
        device: str = "cpu",
        dtype: torch.dtype = torch.bfloat16,
        ops: Ops | None = None,
    ) -> None:
        half = (torch.float16,) if torch.device(device).type == "cuda" else ()
        if dtype not in (torch.float32, torch.bfloat16, *half):
            raise ModelError(f"dtype={dtype}: use torch.float32 or torch.bfloat16")
        _check(spec, weights)
        self.spec, self.dtype, self.device = spec, dtype, torch.device(device)
        self.ops = ops_for(device) if ops is None else ops
        windows = tuple(dict.fromkeys(window(spec, n) for n in range(spec.layers)))
        self.layout = Layout(spec.heads, spec.kv_heads, spec.head_dim, spec.head_dim**-0.5, windows)
        with torch.inference_mode():
            self._eps = torch.tensor(spec.eps, dtype=torch.float32, device=self.device)
            self._embed = weights["embed"].to(self.device, dtype)
            self._head = self.ops.pack(self._embed if spec.tied else weights["head"].to(self.device, dtype), None)
            self._norm = self._as_norm(weights["norm"])
            self._layers = tuple(self._layer(weights, n) for n in range(spec.layers))

    def _as_norm(self, weight: torch.Tensor) -> Norm:
        return Norm(weight.to(self.device, torch.float32), self._eps)

    def _layer(self, weights: Weights, n: int) -> Layer:
        prefix = f"layers.{n}."

        def fused(*names: str) -> Any:
            matrix = torch.cat([weights[prefix + name].to(self.device, self.dtype) for name in names])
            biases = [weights.get(f"{prefix}{name}_bias") for name in names]
            known = [b.to(self.device, self.dtype) for b in biases if b is not None]
            return self.ops.pack(matrix, torch.cat(known) if known else None)

        heads = None
        if self.spec.qk_norm:
            q, k = (weights[prefix + name].to(self.device, torch.float32) for name in ("q_norm", "k_norm"))
            both = torch.cat((q.expand(self.spec.heads, -1), k.expand(self.spec.kv_heads, -1)))
            heads = HeadNorms(both, self._eps)
        return Layer(
            attn_norm=self._as_norm(weights[prefix + "attn_norm"]),
            qkv=fused("q", "k", "v"),
            heads=heads,
            o=fused("o"),
            mlp_norm=self._as_norm(weights[prefix + "mlp_norm"]),
            gate_up=fused("gate", "up"),
            down=fused("down"),
            window=window(self.spec, n),
        )

    def forward(self, tokens: torch.Tensor, plan: Plan, cache: torch.Tensor) -> torch.Tensor:
        """Hidden states before the final norm, `[T', E] float32`, of `tokens` `[T'] int64` (T' = `plan.padded`, the
        rows beyond `plan.tokens` are padding). Writes the new K and V to `cache` `[layers, 2, kv_heads, slots,
        head_dim]`."""
        ops, layout, dtype = self.ops, self.layout, self.dtype
        residual = ops.embedding(tokens, self._embed)
        delta: torch.Tensor | None = None
        for layer, kv in zip(self._layers, cache.unbind(0), strict=True):
            x = ops.rmsnorm(residual, delta, layer.attn_norm, dtype)
            q = ops.rope_store(ops.linear(x, layer.qkv), layer.heads, layout, plan, kv)
            delta = ops.linear(ops.attention(q, layout, plan, kv, layer.window, dtype), layer.o)
            x = ops.rmsnorm(residual, delta, layer.mlp_norm, dtype)
            delta = ops.linear(ops.silu_mul(ops.linear(x, layer.gate_up)), layer.down)
        return residual if delta is None else residual.add_(delta)

    def logits(self, hidden: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """`[rows, vocab] float32` of hidden states `[rows, E]` of `forward`; written to `out` where it is given."""
        normed = self.ops.rmsnorm(hidden, None, self._norm, self.dtype)
        made = self.ops.linear(normed, self._head)
        return made.to(torch.float32) if out is None else out.copy_(made)

    def angles(self, context: int) -> Angles:
        """Rotary tables for positions 0..context-1."""
        return rope_angles(self.spec.rope, self.spec.head_dim, context, self.device)


def window(spec: Spec, layer: int) -> int | None:
    """The sliding window of layer `layer`, None for full attention."""
    return spec.window if spec.window is not None and spec.windowed[layer] else None


def _check(spec: Spec, weights: Weights) -> None:
    wanted = spec.tensor_shapes()
    for name, shape in wanted.items():
        if name not in weights:
            raise ModelError(f"weights of {spec.name!r}: tensor {name!r} is missing; load them with load_weights")
        if tuple(weights[name].shape) != shape:
            found = tuple(weights[name].shape)
            raise ModelError(f"weights of {spec.name!r}: tensor {name!r} has shape {found}; the spec says {shape}")
    if extra := sorted(set(weights) - set(wanted)):
        raise ModelError(f"weights of {spec.name!r}: tensor {extra[0]!r} is not one of the spec's; remove it")


def rope_angles(rope: Rope, dim: int, context: int, device: torch.device) -> Angles:
    """`cos`, `sin` `[context, dim / 2] float32`, angles in float32 as the models were trained."""
    angles = torch.arange(context, dtype=torch.float32)[:, None] * inverse_frequencies(rope, dim)[None]
    factor = attention_factor(rope)
    return Angles((angles.cos() * factor).to(device), (angles.sin() * factor).to(device))


def inverse_frequencies(rope: Rope, dim: int) -> torch.Tensor:
    """`[dim / 2] float32`: radians per position of each pair of dimensions."""
    return torch.from_numpy(frequencies(rope, dim))
