"""One description of a decoder, read from a Hugging Face config or a GGUF header.

In: `config.json` (as a dict) or GGUF metadata. Out: a `Spec`, all that `decoder.py` and the loaders need to know.
Tensors have canonical names whatever the file calls them (see `tensor_shapes`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Family = Literal["llama", "mistral", "qwen2", "qwen3"]


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary embedding. `kind` none, linear, llama3 (Llama 3.1's frequency bands) or yarn (Peng et al. 2023);
    the fields are those of Hugging Face's `rope_scaling` of the same names."""

    theta: float = 10000.0
    kind: Literal["none", "linear", "llama3", "yarn"] = "none"
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


@dataclass(frozen=True, slots=True)
class Spec:
    """Shape and constants of a Llama-family decoder. `window` is the sliding attention window in tokens (a token sees
    itself and the window - 1 before it), in the layers for which `windowed[i]` is true."""

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
