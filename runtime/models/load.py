"""Weights by canonical name.

In: a `ModelSource`, its `Spec` and a dtype. Out: one tensor on the CPU for each entry of `Spec.tensor_shapes()`, no
more and no less. Tensors are read one at a time; missing, extra, misshapen and non-finite ones are refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ramet.frontend.errors import ModelError
from ramet.runtime.models.gguf import read_gguf
from ramet.runtime.models.hub import ModelSource
from ramet.runtime.models.names import (
    FLOATS,
    GGUF_IGNORED,
    HF_IGNORED,
    check_names,
    check_rope,
    check_shape,
    file_names,
    shards,
)
from ramet.runtime.models.spec import Spec

Weights = dict[str, torch.Tensor]


def load_weights(source: ModelSource, spec: Spec, dtype: torch.dtype) -> Weights:
    """The tensors of `spec.tensor_shapes()`, of `dtype` (float32, bfloat16, float16), contiguous, on the CPU, writable.

    q and k are in Hugging Face's half-split order. A random source gives `random_weights` with seed 0.
    Peak memory: the result and one tensor in float32. Raises `ModelError`.
    """
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ModelError(f"dtype={dtype}: weights are loaded as torch.float32, torch.bfloat16 or torch.float16")
    if source.kind == "random":
        return random_weights(spec, dtype)
    tensors = _from_gguf(source.path, spec) if source.kind == "gguf" else _from_safetensors(source.path, spec)
    weights: Weights = {}
    for name, tensor in tensors:
        if not _finite(tensor):
            raise ModelError(f"{source.path}: tensor {name!r} has values that are not finite: the file is corrupt")
        weights[name] = tensor.to(dtype).contiguous()
        if dtype is torch.float16 and not _finite(weights[name]):
            raise ModelError(f"{source.path}: tensor {name!r} has values beyond float16's; choose dtype='bfloat16'")
    return weights


def _finite(tensor: torch.Tensor) -> bool:
    """A sum is finite only if every element is (float32 holds the sum of any model's tensor)."""
    return math.isfinite(tensor.sum(dtype=torch.float32).item())


def _from_gguf(path: Path, spec: Spec) -> Iterator[tuple[str, torch.Tensor]]:
    """Each tensor in float32. Files of architecture llama have q and k rows in interleaved rotary order."""
    file = read_gguf(path)
    wanted, shapes = file_names(spec, 1), spec.tensor_shapes()
    check_names(path, wanted, set(file.tensors), GGUF_IGNORED)
    check_rope(file, spec)
    interleaved = file.metadata.get("general.architecture") == "llama"
    for canonical, name in wanted.items():
        check_shape(path, name, file.tensors[name].shape, shapes[canonical])
        tensor = torch.from_numpy(file.dequantize(name))
        part = canonical.rpartition(".")[2]
        if interleaved and part in ("q", "q_bias", "k", "k_bias"):
            tensor = _half_split(tensor, spec.heads if part[0] == "q" else spec.kv_heads)
        yield canonical, tensor


def _half_split(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of each head from (0, d/2, 1, d/2 + 1, ...) back to (0, 1, ..., d - 1)."""
    pairs = tensor.reshape(heads, tensor.shape[0] // heads // 2, 2, *tensor.shape[1:])
    return pairs.transpose(1, 2).reshape(tensor.shape)


def _from_safetensors(path: Path, spec: Spec) -> Iterator[tuple[str, torch.Tensor]]:
    wanted, shapes = file_names(spec, 0), spec.tensor_shapes()
    canonical = {name: key for key, name in wanted.items()}
    files = shards(path)
    place = _locate(files)
    present = set(place)
    if spec.tied:
        present.discard("lm_head.weight")  # a second copy; compared with the embedding below
    check_names(path, wanted, present, HF_IGNORED)
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
    if dtype not in FLOATS:
        raise ModelError(f"{file}: tensor {name!r} has type {dtype}; supported: {', '.join(FLOATS)}")
    check_shape(file, name, shape, wanted)
    return shard.tensor(name)


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
