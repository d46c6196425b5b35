"""The Spec of a GGUF header.

In: the metadata and tensor names of a GGUF file. Out: a validated `Spec`. Keys that are not understood are refused.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from ramet.frontend.errors import ModelError
from ramet.runtime.models.fields import Fields, between, shortest, unique
from ramet.runtime.models.spec import CAPS, SUPPORTED, Family, Rope, Spec, yarn_context

if TYPE_CHECKING:  # numpy is needed for Llama 3's frequency bands alone
    import numpy as np

# Keys below "<architecture>." of a GGUF header that are understood; and those that may only have a neutral value.
_GGUF_READ = [
    "vocab_size",
    "context_length",
    "embedding_length",
    "block_count",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "attention.sliding_window",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
]
_GGUF_NEUTRAL: dict[str, tuple[object, ...]] = {
    "expert_count": (0,),
    "expert_used_count": (0,),
    "attention.causal": (True,),
    "use_parallel_residual": (False,),
    "tensor_data_layout": ("Meta AI original pth",),
    "rope.scaling.attn_factor": (1.0,),
    "rope.scaling.yarn_attn_factor": (1.0,),
    "rope.scaling.yarn_ext_factor": (1.0,),
    "rope.scaling.yarn_log_multiplier": (0.0,),
    "attn_logit_softcapping": (0.0,),
    "final_logit_softcapping": (0.0,),
    "logit_scale": (1.0,),
    "residual_scale": (1.0,),
    "embedding_scale": (1.0,),
    "pooling_type": (0,),
}


def from_gguf(metadata: Mapping[str, Any], tensors: Collection[str]) -> Spec:
    """The Spec of a GGUF header. `tensors` are the names of the file's tensors: they alone say whether the embeddings
    are tied (no `output.weight`) and which projections have biases. Every key below the architecture's prefix must be
    known.

    Llama 3's frequency bands are in the tensor `rope_freqs.weight`, see `rope_from_factors`. Raises `ModelError`.
    """
    general = Fields(metadata, "GGUF header")
    family = general.get("general.architecture")
    if family not in ("llama", "qwen2", "qwen3"):
        raise general.refuse("general.architecture", "supported: llama, qwen2, qwen3")
    f = Fields(metadata, "GGUF header", f"{family}.")
    known = {f.prefix + key for key in (*_GGUF_READ, *_GGUF_NEUTRAL)}
    unknown = sorted(key for key in metadata if key.startswith(f.prefix) and key not in known)
    if unknown:
        raise f.refuse(unknown[0].removeprefix(f.prefix), f"is not known for architecture {family}; {SUPPORTED}")
    f.neutral(_GGUF_NEUTRAL, SUPPORTED)
    heads, hidden, layers = f.integer("attention.head_count"), f.integer("embedding_length"), f.integer("block_count")
    between("GGUF header: attention.head_count", heads, 1, CAPS["heads"])
    between("GGUF header: block_count", layers, 1, CAPS["layers"])
    head_dim = f.integer("attention.key_length", hidden // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if f.integer(key, head_dim) != head_dim:
            raise f.refuse(key, f"must equal the head size {head_dim}")
    window = _gguf_window(f, cast(Family, family))
    rope, context = _gguf_rope(f), f.integer("context_length")
    names = metadata.get("tokenizer.ggml.tokens")
    return Spec(
        family=cast(Family, family),
        name=str(metadata.get("general.name") or family),
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=f.integer("attention.head_count_kv", heads),
        head_dim=head_dim,
        intermediate=f.integer("feed_forward_length"),
        vocab=f.integer("vocab_size", len(names) if isinstance(names, list) else None),
        context=yarn_context(rope, context),
        eps=f.number("attention.layer_norm_rms_epsilon"),
        rope=rope,
        tied="output.weight" not in tensors,
        qkv_bias=family == "qwen2" or "blk.0.attn_q.bias" in tensors,
        output_bias="blk.0.attn_output.bias" in tensors,
        mlp_bias="blk.0.ffn_gate.bias" in tensors,
        qk_norm=family == "qwen3",
        window=window,
        windowed=(True,) * layers if window else (),
        bos=next(iter(general.tokens("tokenizer.ggml.bos_token_id")), None),
        eos=unique([i for key in ("eos", "eot", "eom") for i in general.tokens(f"tokenizer.ggml.{key}_token_id")]),
    )


def _gguf_window(f: Fields, family: Family) -> int | None:
    window = f.integer("attention.sliding_window", 0)
    if not window:
        return None
    if family != "llama":
        raise f.refuse("attention.sliding_window", "the header does not say which layers have the window")
    return window


def _gguf_rope(f: Fields) -> Rope:
    theta, kind = f.number("rope.freq_base", 10000.0), f.get("rope.scaling.type") or "none"
    if f.get("rope.scale_linear") is not None and "rope.scaling.type" not in f.values:
        return Rope(theta, "linear", f.number("rope.scale_linear"))
    if kind == "none":
        return Rope(theta)
    if kind == "linear":
        return Rope(theta, "linear", f.number("rope.scaling.factor"))
    if kind != "yarn":
        raise f.refuse("rope.scaling.type", "supported: none, linear, yarn")
    return Rope(
        theta=theta,
        kind="yarn",
        factor=f.number("rope.scaling.factor"),
        original_context=f.integer("rope.scaling.original_context_length", f.integer("context_length")),
        beta_fast=f.number("rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=f.number("rope.scaling.yarn_beta_slow", 1.0),
    )


def llama3_factors(rope: Rope, head_dim: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """What Llama 3.1's scaling divides each frequency by, `[head_dim / 2] float64`, as `rope_freqs.weight` has it."""
    import numpy as np

    turns = rope.theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim) / (2 * math.pi)
    smooth = (rope.original_context * turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    smooth = np.clip(smooth, 0.0, 1.0)
    return cast("np.ndarray[Any, np.dtype[np.float64]]", 1.0 / ((1.0 - smooth) / rope.factor + smooth))


def rope_from_factors(rope: Rope, head_dim: int, factors: Sequence[float]) -> Rope:
    """The llama3 Rope whose frequency divisors are `factors`, `[head_dim / 2]` (GGUF's `rope_freqs.weight`).

    The bands are first taken as Llama 3.1's own (8192 tokens, 1 to 4) and else fitted, low_freq_factor being 1 by
    convention (only the ratios matter). Raises `ModelError` when the divisors are of another kind.
    """
    import numpy as np

    given = np.asarray(factors, dtype=np.float64)
    if given.shape != (head_dim // 2,) or not np.isfinite(given).all() or given.min() <= 0:
        raise ModelError(f"rope_freqs.weight: {given.size} values, expected {head_dim // 2} positive finite ones")
    if np.allclose(given, 1.0, rtol=1e-6):
        return rope
    if rope.kind != "none":
        raise ModelError(f"rope_freqs.weight together with rope.scaling.type={rope.kind!r} is not supported")
    factor = shortest(float(given.max()))
    candidates = [replace(rope, kind="llama3", factor=factor, original_context=8192)]
    smooth = (1.0 / given - 1.0 / factor) / (1.0 - 1.0 / factor)
    middle = (smooth > 1e-6) & (smooth < 1.0 - 1e-6)
    if middle.sum() >= 2:
        turns = rope.theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim) / (2 * math.pi)
        slope, offset = np.polyfit(turns[middle], smooth[middle], 1)
        if slope > 0 and offset < 0:
            high, length = 1.0 - 1.0 / offset, round(-slope / offset)
            if 1 < high <= 1e6 and 1 <= length <= CAPS["context"]:
                candidates.append(replace(candidates[0], high_freq_factor=round(high, 4), original_context=length))
    for candidate in candidates:
        if np.allclose(llama3_factors(candidate, head_dim), given, rtol=1e-4):
            return candidate
    raise ModelError(
        "rope_freqs.weight: the frequency divisors are not those of Llama 3's scaling; no other is supported"
    )
