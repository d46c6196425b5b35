"""One description of a decoder, read from a Hugging Face config or a GGUF header.

In: `config.json` as a dict (a GGUF header: gguf_spec.py). Out: a validated `Spec`, all that `decoder.py` and the
loaders need to know. Tensors have canonical names whatever the file calls them (see `tensor_shapes`). What the
decoder cannot compute is refused here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from ramet.frontend.errors import ModelError
from ramet.runtime.models.fields import Fields, between, unique

Family = Literal["llama", "mistral", "qwen2", "qwen3"]
FAMILIES: tuple[Family, ...] = ("llama", "mistral", "qwen2", "qwen3")
RopeKind = Literal["none", "linear", "llama3", "yarn"]

# Largest sizes that are accepted: some ten times beyond the largest models of these families.
CAPS = {
    "layers": 1024,
    "hidden": 1 << 17,
    "heads": 4096,
    "kv_heads": 4096,
    "head_dim": 2048,
    "intermediate": 1 << 20,
    "vocab": 1 << 22,
    "context": 1 << 28,
}


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary embedding. `kind` none, linear, llama3 (Llama 3.1's frequency bands) or yarn (Peng et al. 2023);
    the fields are those of Hugging Face's `rope_scaling` of the same names. Raises `ModelError`."""

    theta: float = 10000.0
    kind: RopeKind = "none"
    factor: float = 1.0
    original_context: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    def __post_init__(self) -> None:
        between("rope theta", self.theta, 1.0 + 1e-9, 1e15)
        between("rope factor", self.factor, 1e-3, 1e6)
        between("rope original_context", self.original_context, 0, CAPS["context"])
        for name in ("low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow"):
            between(f"rope {name}", getattr(self, name), 1e-6, 1e6)
        for name in ("attention_factor", "mscale", "mscale_all_dim"):
            value = getattr(self, name)
            if value is not None:
                between(f"rope {name}", value, 0.0, 1e6)
        if self.kind in ("llama3", "yarn") and not self.original_context:
            raise ModelError(f"rope kind {self.kind!r} needs original_context (original_max_position_embeddings) > 0")
        if self.kind == "llama3" and not self.low_freq_factor < self.high_freq_factor:
            raise ModelError(
                f"rope low_freq_factor={self.low_freq_factor} must be below high_freq_factor={self.high_freq_factor}"
            )


@dataclass(frozen=True, slots=True)
class Spec:
    """Shape and constants of a Llama-family decoder. `window` is the sliding attention window in tokens (a token sees
    itself and the window - 1 before it), in the layers for which `windowed[i]` is true. Raises `ModelError`."""

    family: Family
    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    context: int
    eps: float
    rope: Rope
    tied: bool
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    window: int | None = None
    windowed: tuple[bool, ...] = ()
    bos: int | None = None
    eos: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise ModelError(f"family={self.family!r} is not supported; supported: {', '.join(FAMILIES)}")
        for name, cap in CAPS.items():
            between(name, getattr(self, name), 1, cap)
        between("eps", self.eps, 0.0, 1.0)
        if self.heads % self.kv_heads:
            raise ModelError(f"heads={self.heads} is not a multiple of kv_heads={self.kv_heads}")
        if self.head_dim % 2:
            raise ModelError(f"head_dim={self.head_dim} is odd: rotary embedding needs pairs")
        if self.window is not None:
            between("window", self.window, 1, CAPS["context"])
            if len(self.windowed) != self.layers:
                raise ModelError(f"windowed has {len(self.windowed)} entries for {self.layers} layers")
        for name, token in (("bos", self.bos), *(("eos", token) for token in self.eos)):
            if token is not None and not 0 <= token < self.vocab:
                raise ModelError(f"{name}={token} is outside the vocabulary of {self.vocab} tokens")

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor by canonical name with its shape `[out, in]`: what a loader must deliver, no more, no less.

        q and k rows are in Hugging Face's half-split order (GGUF `llama` files are permuted back).
        """
        e, d = self.hidden, self.head_dim
        q, kv, i = self.heads * d, self.kv_heads * d, self.intermediate
        shapes: dict[str, tuple[int, ...]] = {"embed": (self.vocab, e), "norm": (e,)}
        if not self.tied:
            shapes["head"] = (self.vocab, e)
        for n in range(self.layers):
            p = f"layers.{n}."
            shapes |= {p + "attn_norm": (e,), p + "mlp_norm": (e,)}
            shapes |= {p + "q": (q, e), p + "k": (kv, e), p + "v": (kv, e), p + "o": (e, q)}
            shapes |= {p + "gate": (i, e), p + "up": (i, e), p + "down": (e, i)}
            if self.qkv_bias:
                shapes |= {p + "q_bias": (q,), p + "k_bias": (kv,), p + "v_bias": (kv,)}
            if self.output_bias:
                shapes[p + "o_bias"] = (e,)
            if self.mlp_bias:
                shapes |= {p + "gate_bias": (i,), p + "up_bias": (i,), p + "down_bias": (e,)}
            if self.qk_norm:
                shapes |= {p + "q_norm": (d,), p + "k_norm": (d,)}
        return shapes


SUPPORTED = "supported: dense Llama 2/3, SmolLM2, Mistral, Qwen2/2.5 and Qwen3 decoders"
_ARCHITECTURES: dict[str, Family] = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
# Keys of a config.json that change the computation, with the values that do not.
_HF_NEUTRAL: dict[str, tuple[object, ...]] = {
    "quantization_config": (),
    "auto_map": (),
    "hidden_act": ("silu",),
    "partial_rotary_factor": (1,),
    "rotary_pct": (1,),
    "rope_interleaved": (False,),
    "no_rope_layers": ([],),
    "attn_logit_softcapping": (0,),
    "final_logit_softcapping": (0,),
    "num_experts": (0,),
    "num_local_experts": (0,),
    "n_routed_experts": (0,),
    "use_qk_norm": (False,),
    "qk_layernorm": (False,),
    "clip_qkv": (),
    "alibi": (False,),
    "use_parallel_residual": (False,),
    "query_pre_attn_scalar": (),
    "attention_multiplier": (),
    "attention_chunk_size": (),
    "sliding_window_pattern": (),
    "kv_lora_rank": (),
    "logits_scaling": (1,),
    "logit_scale": (1,),
    "residual_multiplier": (1,),
    "embedding_multiplier": (1,),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
}


def from_hf(config: Mapping[str, Any], generation: Mapping[str, Any] | None = None) -> Spec:
    """The Spec of a `config.json` as transformers 4 or 5 writes it (with `rope_theta` and `rope_scaling`, or with
    `rope_parameters`).

    End-of-text ids are the union of the config's and of `generation`'s (`generation_config.json`). The context of a
    yarn model is at least factor x original context, as its authors mean it. Raises `ModelError` for what is not
    supported.
    """
    f = Fields(config, "config.json")
    family = _hf_family(f)
    f.neutral(_HF_NEUTRAL, SUPPORTED)
    heads, hidden = f.integer("num_attention_heads"), f.integer("hidden_size")
    layers, context = f.integer("num_hidden_layers"), f.integer("max_position_embeddings")
    between("config.json: num_attention_heads", heads, 1, CAPS["heads"])
    between("config.json: num_hidden_layers", layers, 1, CAPS["layers"])
    kv_default = 8 if family == "mistral" and "num_key_value_heads" not in config else heads
    head_default = 128 if family == "qwen3" and "head_dim" not in config else hidden // heads
    window, windowed = _hf_window(f, family, layers)
    rope, explicit = _hf_rope(f, context)
    biased = family in ("llama", "qwen3") and f.flag("attention_bias")
    return Spec(
        family=family,
        name=str(config.get("_name_or_path") or family),
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=f.integer("num_key_value_heads", kv_default),
        head_dim=f.integer("head_dim", head_default),
        intermediate=f.integer("intermediate_size"),
        vocab=f.integer("vocab_size"),
        context=yarn_context(rope, context) if explicit else context,
        eps=f.number("rms_norm_eps", 1e-6),
        rope=rope,
        tied=f.flag("tie_word_embeddings"),
        qkv_bias=family == "qwen2" or biased,
        output_bias=biased,
        mlp_bias=family == "llama" and f.flag("mlp_bias"),
        qk_norm=family == "qwen3",
        window=window,
        windowed=windowed,
        bos=next(iter(f.tokens("bos_token_id")), None),
        eos=unique(
            f.tokens("eos_token_id") + Fields(generation or {}, "generation_config.json").tokens("eos_token_id")
        ),
    )


def _hf_family(f: Fields) -> Family:
    kind = f.get("model_type")
    if kind not in FAMILIES:
        raise f.refuse("model_type", SUPPORTED)
    family = cast(Family, kind)
    named = f.get("architectures")
    if named is not None and (not isinstance(named, list) or [_ARCHITECTURES.get(str(n)) for n in named] != [family]):
        raise f.refuse("architectures", f"supported: {', '.join(_ARCHITECTURES)}")
    return family


def _hf_window(f: Fields, family: Family, layers: int) -> tuple[int | None, tuple[bool, ...]]:
    """The sliding window and the layers that have it, by the rules of transformers' own configs."""
    types = f.get("layer_types")
    if types is not None:
        known = isinstance(types, list) and all(t in ("full_attention", "sliding_attention") for t in types)
        if not known or len(types) != layers:
            raise f.refuse("layer_types", f"must list full_attention or sliding_attention for each of {layers} layers")
    window = f.get("sliding_window") and f.integer("sliding_window")
    if family == "llama":
        if (window and f.flag("use_sliding_window", True)) or "sliding_attention" in (types or ()):
            raise f.refuse("sliding_window", "Llama models have none; a model with a window is of type mistral")
        return None, ()
    if family == "mistral":
        if types is not None and types != ["sliding_attention" if window else "full_attention"] * layers:
            raise f.refuse("layer_types", "a mistral model has the same attention in all layers")
        return (window, (True,) * layers) if window else (None, ())
    if not window or not f.flag("use_sliding_window"):
        if "sliding_attention" in (types or ()):
            raise f.refuse("layer_types", "has sliding layers, but use_sliding_window or sliding_window is off")
        return None, ()
    first = f.integer("max_window_layers", 28)
    windowed = tuple(t == "sliding_attention" for t in types) if types else tuple(i >= first for i in range(layers))
    return (window, windowed) if any(windowed) else (None, ())


_ROPE_KEYS: dict[str, set[str]] = {
    "none": set(),
    "linear": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor"},
    "yarn": {"factor", "beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate"},
}
_ROPE_COMMON = {
    "rope_type",
    "type",
    "rope_theta",
    "original_max_position_embeddings",
    "partial_rotary_factor",
    "finetuned",
}


def _hf_rope(f: Fields, context: int) -> tuple[Rope, bool]:
    """The rope, and whether the config names its original context itself."""
    raw = f.get("rope_parameters") or f.get("rope_scaling") or {}
    if not isinstance(raw, dict):
        raise f.refuse("rope_parameters" if f.get("rope_parameters") else "rope_scaling", "must be an object")
    r = Fields(raw, "config.json: rope")
    written = raw.get("rope_type") or raw.get("type") or "default"
    kind = "none" if written == "default" else written
    if kind not in _ROPE_KEYS:
        raise ModelError(
            f"config.json: rope_type={written!r} is not supported; supported: default, linear, llama3, yarn"
        )
    r.neutral({"partial_rotary_factor": (1,)}, "only full rotary embedding is supported")
    r.neutral(
        dict.fromkeys(raw.keys() - _ROPE_COMMON - set().union(*_ROPE_KEYS.values()), ()), "is not a known rope key"
    )
    theta = r.number("rope_theta", f.number("rope_theta", 10000.0))
    if kind == "none":
        return Rope(theta=theta), False
    if kind == "linear":
        return Rope(theta=theta, kind="linear", factor=r.number("factor")), False
    outer = f.get("original_max_position_embeddings") is not None
    explicit = outer or raw.get("original_max_position_embeddings") is not None
    original = (f if outer else r).integer("original_max_position_embeddings", context)
    between("config.json: original_max_position_embeddings", original, 1, CAPS["context"])
    if kind == "llama3":
        low, high = r.number("low_freq_factor"), r.number("high_freq_factor")
        return Rope(theta, "llama3", r.number("factor"), original, low_freq_factor=low, high_freq_factor=high), explicit
    rope = Rope(
        theta=theta,
        kind="yarn",
        factor=r.number("factor", context / original),
        original_context=original,
        beta_fast=r.number("beta_fast") if r.get("beta_fast") else 32.0,
        beta_slow=r.number("beta_slow") if r.get("beta_slow") else 1.0,
        attention_factor=r.optional_number("attention_factor"),
        mscale=r.optional_number("mscale"),
        mscale_all_dim=r.optional_number("mscale_all_dim"),
        truncate=r.flag("truncate", True),
    )
    return rope, explicit


def yarn_context(rope: Rope, context: int) -> int:
    """The tokens that a yarn-scaled model can take: its config may still give the length before scaling."""
    return max(context, int(rope.factor * rope.original_context)) if rope.kind == "yarn" else context
