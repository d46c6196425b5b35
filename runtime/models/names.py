"""What a file of weights must hold: the names of the tensors, their shapes, the files of a sharded model.

In: a `Spec`, a directory or an opened GGUF file. Out: the file's name of each canonical tensor, or an error that names
what is missing, extra or misshapen.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np

from ramet.frontend.errors import ModelError
from ramet.runtime.models.gguf import GGUFFile
from ramet.runtime.models.gguf_spec import llama3_factors
from ramet.runtime.models.spec import Spec

_MAX_INDEX = 64 << 20  # bytes of a shard index
FLOATS = ("F32", "F16", "BF16")  # types of safetensors that are read

# Canonical name: (Hugging Face, GGUF); those of a layer follow "model.layers.N." and "blk.N.".
_OUTER = {
    "embed": ("model.embed_tokens.weight", "token_embd.weight"),
    "norm": ("model.norm.weight", "output_norm.weight"),
    "head": ("lm_head.weight", "output.weight"),
}
_INNER = {
    "attn_norm": ("input_layernorm.weight", "attn_norm.weight"),
    "mlp_norm": ("post_attention_layernorm.weight", "ffn_norm.weight"),
    "q": ("self_attn.q_proj.weight", "attn_q.weight"),
    "k": ("self_attn.k_proj.weight", "attn_k.weight"),
    "v": ("self_attn.v_proj.weight", "attn_v.weight"),
    "o": ("self_attn.o_proj.weight", "attn_output.weight"),
    "gate": ("mlp.gate_proj.weight", "ffn_gate.weight"),
    "up": ("mlp.up_proj.weight", "ffn_up.weight"),
    "down": ("mlp.down_proj.weight", "ffn_down.weight"),
    "q_bias": ("self_attn.q_proj.bias", "attn_q.bias"),
    "k_bias": ("self_attn.k_proj.bias", "attn_k.bias"),
    "v_bias": ("self_attn.v_proj.bias", "attn_v.bias"),
    "o_bias": ("self_attn.o_proj.bias", "attn_output.bias"),
    "gate_bias": ("mlp.gate_proj.bias", "ffn_gate.bias"),
    "up_bias": ("mlp.up_proj.bias", "ffn_up.bias"),
    "down_bias": ("mlp.down_proj.bias", "ffn_down.bias"),
    "q_norm": ("self_attn.q_norm.weight", "attn_q_norm.weight"),
    "k_norm": ("self_attn.k_norm.weight", "attn_k_norm.weight"),
}
# Constants that older tools stored beside the weights; the decoder computes them.
HF_IGNORED = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")
GGUF_IGNORED = re.compile(r"rope_freqs\.weight|blk\.\d+\.attn_rot_embd")


def file_names(spec: Spec, dialect: int) -> dict[str, str]:
    """The file's name of each canonical tensor; `dialect` 0 is Hugging Face's, 1 GGUF's."""
    names = {}
    for canonical in spec.tensor_shapes():
        if canonical.startswith("layers."):
            _, n, part = canonical.split(".")
            names[canonical] = ("model.layers.", "blk.")[dialect] + n + "." + _INNER[part][dialect]
        else:
            names[canonical] = _OUTER[canonical][dialect]
    return names


def check_names(place: Path, wanted: dict[str, str], present: set[str], ignored: re.Pattern[str]) -> None:
    """Raise `ModelError` unless `present` are the tensors that are `wanted`, and others that are `ignored`."""
    missing = [name for name in wanted.values() if name not in present]
    extra = sorted(name for name in present - set(wanted.values()) if not ignored.fullmatch(name))
    for problem, names in (("has no", missing), ("has unexpected", extra)):
        if names:
            more = f" and {len(names) - 8} more" if len(names) > 8 else ""
            raise ModelError(
                f"{place}: {problem} tensor {', '.join(names[:8])}{more}: not the model that its config says"
            )


def check_shape(place: Path, name: str, shape: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    """Raise `ModelError` for a tensor of another shape than is wanted."""
    if shape != wanted:
        raise ModelError(f"{place}: tensor {name!r} has shape {list(shape)}, expected {list(wanted)}")


def check_rope(file: GGUFFile, spec: Spec) -> None:
    """The file's frequency divisors must be those that `spec.rope` gives, whoever made the Spec."""
    if "rope_freqs.weight" not in file.tensors:
        return
    given = file.dequantize("rope_freqs.weight").astype(np.float64).ravel()
    known = spec.rope.kind in ("none", "llama3")
    ours = llama3_factors(spec.rope, spec.head_dim) if spec.rope.kind == "llama3" else np.ones(spec.head_dim // 2)
    if not known or given.shape != ours.shape or not np.allclose(given, ours, rtol=1e-4):
        raise ModelError(f"{file.path}: rope_freqs.weight is not the scaling of the Spec; make it with hub.load_spec")


def shards(path: Path) -> list[Path]:
    """The safetensors files of a directory: the single one, else those that the index names."""
    single, index = path / "model.safetensors", path / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if not index.is_file():
        found = sorted(path.glob("*.safetensors"))
        if len(found) == 1:
            return found
        raise ModelError(
            f"{path}: has {len(found)} *.safetensors files and no model.safetensors.index.json to order them"
        )
    try:
        if index.stat().st_size > _MAX_INDEX:
            raise ModelError(f"{index}: has more than {_MAX_INDEX} bytes")
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise ModelError(f"{index}: is not a shard index: {type(e).__name__}: {e}") from e
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(r"[\w.-]{1,200}\.safetensors", name):
            raise ModelError(f"{index}: {name!r} is not the name of a file beside it")
        if not (path / name).is_file():
            raise ModelError(f"{index}: names {name}, which is not there: the download is incomplete")
    return sorted(path / name for name in names)
