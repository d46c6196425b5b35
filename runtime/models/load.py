"""Weights by canonical name.

In: a `ModelSource`, its `Spec` and a dtype. Out: one tensor on the CPU for each entry of `Spec.tensor_shapes()`, no
more and no less. Tensors are read one at a time; missing, extra, misshapen and non-finite ones are refused by name.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ramet.frontend.errors import ModelError
from ramet.runtime.models.gguf import GGUFFile, read_gguf
from ramet.runtime.models.gguf_spec import llama3_factors
from ramet.runtime.models.hub import ModelSource
from ramet.runtime.models.spec import Spec

Weights = dict[str, torch.Tensor]
_MAX_INDEX = 64 << 20  # bytes of a shard index
_FLOATS = ("F32", "F16", "BF16")

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
_HF_IGNORED = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")
_GGUF_IGNORED = re.compile(r"rope_freqs\.weight|blk\.\d+\.attn_rot_embd")


def load_weights(source: ModelSource, spec: Spec, dtype: torch.dtype) -> Weights:
    """The tensors of `spec.tensor_shapes()`, of `dtype` (float32 or bfloat16), contiguous, on the CPU, writable.

    q and k are in Hugging Face's half-split order. A random source gives `random_weights` with seed 0.
    Peak memory: the result and one tensor in float32. Raises `ModelError`.
    """
    if dtype not in (torch.float32, torch.bfloat16):
        raise ModelError(f"dtype={dtype}: weights are loaded as torch.float32 or torch.bfloat16")
    if source.kind == "random":
        return random_weights(spec, dtype)
    tensors = _from_gguf(source.path, spec) if source.kind == "gguf" else _from_safetensors(source.path, spec)
    weights: Weights = {}
    for name, tensor in tensors:
        # A sum is finite only if every element is (float32 holds the sum of any model's tensor).
        if not math.isfinite(tensor.sum(dtype=torch.float32).item()):
            raise ModelError(f"{source.path}: tensor {name!r} has values that are not finite: the file is corrupt")
        weights[name] = tensor.to(dtype).contiguous()
    return weights


def _file_names(spec: Spec, dialect: int) -> dict[str, str]:
    """The file's name of each canonical tensor; `dialect` 0 is Hugging Face's, 1 GGUF's."""
    names = {}
    for canonical in spec.tensor_shapes():
        if canonical.startswith("layers."):
            _, n, part = canonical.split(".")
            names[canonical] = ("model.layers.", "blk.")[dialect] + n + "." + _INNER[part][dialect]
        else:
            names[canonical] = _OUTER[canonical][dialect]
    return names


def _check_names(place: Path, wanted: dict[str, str], present: set[str], ignored: re.Pattern[str]) -> None:
    missing = [name for name in wanted.values() if name not in present]
    extra = sorted(name for name in present - set(wanted.values()) if not ignored.fullmatch(name))
    for problem, names in (("has no", missing), ("has unexpected", extra)):
        if names:
            more = f" and {len(names) - 8} more" if len(names) > 8 else ""
            raise ModelError(
                f"{place}: {problem} tensor {', '.join(names[:8])}{more}: not the model that its config says"
            )


def _check_shape(place: Path, name: str, shape: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if shape != wanted:
        raise ModelError(f"{place}: tensor {name!r} has shape {list(shape)}, expected {list(wanted)}")


def _from_gguf(path: Path, spec: Spec) -> Iterator[tuple[str, torch.Tensor]]:
    """Each tensor in float32. Files of architecture llama have q and k rows in interleaved rotary order."""
    file = read_gguf(path)
    wanted, shapes = _file_names(spec, 1), spec.tensor_shapes()
    _check_names(path, wanted, set(file.tensors), _GGUF_IGNORED)
    _check_rope(file, spec)
    interleaved = file.metadata.get("general.architecture") == "llama"
    for canonical, name in wanted.items():
        _check_shape(path, name, file.tensors[name].shape, shapes[canonical])
        tensor = torch.from_numpy(file.dequantize(name))
        part = canonical.rpartition(".")[2]
        if interleaved and part in ("q", "q_bias", "k", "k_bias"):
            tensor = _half_split(tensor, spec.heads if part[0] == "q" else spec.kv_heads)
        yield canonical, tensor


def _half_split(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of each head from (0, d/2, 1, d/2 + 1, ...) back to (0, 1, ..., d - 1)."""
    pairs = tensor.reshape(heads, tensor.shape[0] // heads // 2, 2, *tensor.shape[1:])
    return pairs.transpose(1, 2).reshape(tensor.shape)


def _check_rope(file: GGUFFile, spec: Spec) -> None:
    """The file's frequency divisors must be those that `spec.rope` gives, whoever made the Spec."""
    if "rope_freqs.weight" not in file.tensors:
        return
    given = torch.from_numpy(file.dequantize("rope_freqs.weight")).double().flatten()
    known = spec.rope.kind in ("none", "llama3")
    ours = torch.ones(spec.head_dim // 2, dtype=torch.float64)
    if spec.rope.kind == "llama3":
        ours = torch.from_numpy(llama3_factors(spec.rope, spec.head_dim))
    if not known or given.shape != ours.shape or not torch.allclose(given, ours, rtol=1e-4):
        raise ModelError(f"{file.path}: rope_freqs.weight is not the scaling of the Spec; make it with hub.load_spec")


def _from_safetensors(path: Path, spec: Spec) -> Iterator[tuple[str, torch.Tensor]]:
    wanted, shapes = _file_names(spec, 0), spec.tensor_shapes()
    canonical = {name: key for key, name in wanted.items()}
    files = _shards(path)
    place = _locate(files)
    present = set(place)
    if spec.tied:
        present.discard("lm_head.weight")  # a second copy; compared with the embedding below
    _check_names(path, wanted, present, _HF_IGNORED)
    for file in files:
        with _Shard(file) as shard:
            for name in (n for n, where in place.items() if where == file and n in canonical):
                yield canonical[name], _read(shard, file, name, shapes[canonical[name]])
    if spec.tied and "lm_head.weight" in place:
        _check_tied(path, place, shapes["embed"])


def _locate(files: list[Path]) -> dict[str, Path]:
    """The file of each tensor, as the files themselves say it."""
    place: dict[str, Path] = {}
    for file in files:
        with _Shard(file) as shard:
            for name in shard.names():
                if name in place:
                    raise ModelError(f"{file}: tensor {name!r} is also in {place[name].name}")
                place[name] = file
    return place


def _check_tied(path: Path, place: dict[str, Path], shape: tuple[int, ...]) -> None:
    both = []
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        with _Shard(place[name]) as shard:
            both.append(_read(shard, place[name], name, shape))
    if not torch.equal(*both):
        raise ModelError(
            f"{path}: config.json ties lm_head.weight to the embedding, but the file has another lm_head.weight; "
            f"set tie_word_embeddings to false there"
        )


class _Shard:
    """One open safetensors file whose errors are `ModelError`s."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file: Any = safe_open(path, framework="pt", device="cpu")
        except (SafetensorError, OSError) as e:
            raise ModelError(f"{path}: cannot be read as safetensors: {e}") from e

    def __enter__(self) -> _Shard:
        self._file.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.__exit__(None, None, None)

    def names(self) -> list[str]:
        return list(self._file.keys())

    def header(self, name: str) -> tuple[str, tuple[int, ...]]:
        part = self._file.get_slice(name)
        return str(part.get_dtype()), tuple(part.get_shape())

    def tensor(self, name: str) -> torch.Tensor:
        try:
            # A copy: the library maps the file, and a file that changes later must not change the weights.
            tensor: torch.Tensor = self._file.get_tensor(name)
            return tensor.clone()
        except (SafetensorError, RuntimeError) as e:
            raise ModelError(f"{self.path}: tensor {name!r} cannot be read: {e}") from e


def _read(shard: _Shard, file: Path, name: str, wanted: tuple[int, ...]) -> torch.Tensor:
    dtype, shape = shard.header(name)
    if dtype not in _FLOATS:
        raise ModelError(f"{file}: tensor {name!r} has type {dtype}; supported: {', '.join(_FLOATS)}")
    _check_shape(file, name, shape, wanted)
    return shard.tensor(name)


def _shards(path: Path) -> list[Path]:
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


def random_weights(spec: Spec, dtype: torch.dtype, seed: int = 0) -> Weights:
    """Normal weights of the Spec's shapes, the same for each seed (drawn in float32, then rounded to `dtype`).

    Scaled so that activations and logits stay of order 1: 1/sqrt(fan in), and 1/sqrt(2 layers) less where a branch
    is added to the residual stream (Radford et al. 2019); norms are 1 and biases small.
    """
    generator = torch.Generator().manual_seed(seed)
    weights: Weights = {}
    for name, shape in spec.tensor_shapes().items():
        part = name.rpartition(".")[2]
        if part.endswith("norm"):
            weights[name] = torch.ones(shape, dtype=dtype)
            continue
        scale = 0.02 if len(shape) == 1 else shape[1] ** -0.5
        scale *= (2 * spec.layers) ** -0.5 if part in ("o", "down") else 1.0
        weights[name] = torch.randn(shape, generator=generator).mul_(scale).to(dtype)
    return weights
