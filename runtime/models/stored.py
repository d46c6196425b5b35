"""Weights as they are stored, in pieces of bounded size, without torch.

In: a `ModelSource` and its `Spec`. Out: a stream of `Chunk`s that together hold every tensor of `Spec.tensor_shapes()`
exactly once. Names, shapes and offsets are checked before the first; values that are not finite are refused on the way.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ramet.frontend.errors import ModelError
from ramet.runtime.models.gguf import TENSOR_TYPES, dequantize_blocks, read_gguf
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
from ramet.runtime.models.safetensors_map import Entry, read_header
from ramet.runtime.models.spec import Spec

_DRAWN = 1 << 20  # random numbers drawn at once, a multiple of 16

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]

CHUNK = 8 << 20  # bytes of a chunk, at most, unless one row has more
_BLOCKS = {name: (block, size) for name, block, size in TENSOR_TYPES.values()}
# where a block has its float16 numbers; a nan or an infinity there spoils the whole block
_SCALES = {"Q8_0": (0,), "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
NATIVE = (*FLOATS, *_SCALES)  # types of chunks; other blocks arrive as F32


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows `first`... of the tensor of canonical name `name`: `raw` `[rows, bytes of a row] uint8` of `type` (one of
    `NATIVE`). A tensor of one dimension is one row."""

    name: str
    type: str
    first: int
    raw: U8


@dataclass(frozen=True, slots=True)
class Stored:
    """`chunks` in the order in which they lie in the file. `interleaved`: the rows of q and k, and their biases, are in
    interleaved rotary order, as GGUF files of architecture llama have them; else in half-split order."""

    chunks: Iterator[Chunk]
    interleaved: bool = False


@dataclass(frozen=True, slots=True)
class _Place:
    path: Path
    type: str
    offset: int
    rows: int
    width: int  # values of a row


def stored(source: ModelSource, spec: Spec) -> Stored:
    """The weights of `source`. A random source gives those of `models.load.random_weights` with seed 0, but for the
    last bit of a few. Raises `ModelError`, at once for names, shapes and offsets, later for values."""
    if source.kind == "random":
        return Stored(random_chunks(spec))
    if source.kind == "gguf":
        return _from_gguf(source.path, spec)
    return Stored(_read(_from_safetensors(source.path, spec)))


def values(chunk: Chunk) -> F32:
    """The float32 values of a chunk of floats, `[rows, values]`."""
    if chunk.type == "F32":
        return chunk.raw.view("<f4").astype(np.float32, copy=False)
    if chunk.type == "F16":
        return chunk.raw.view("<f2").astype(np.float32)
    if chunk.type == "BF16":
        return (chunk.raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
    return dequantize_blocks(chunk.raw.ravel(), chunk.type).reshape(len(chunk.raw), -1)


def _from_gguf(path: Path, spec: Spec) -> Stored:
    file = read_gguf(path)
    wanted, shapes = file_names(spec, 1), spec.tensor_shapes()
    check_names(path, wanted, set(file.tensors), GGUF_IGNORED)
    check_rope(file, spec)
    places: dict[str, _Place] = {}
    for canonical, name in wanted.items():
        info = file.tensors[name]
        check_shape(path, name, info.shape, shapes[canonical])
        places[canonical] = _place(path, info.type, info.offset, info.shape)
    return Stored(_read(places), file.metadata.get("general.architecture") == "llama")


def _from_safetensors(path: Path, spec: Spec) -> dict[str, _Place]:
    found: dict[str, tuple[Path, Entry]] = {}
    for file in shards(path):
        for name, entry in read_header(file).items():
            if name in found:
                raise ModelError(f"{file}: tensor {name!r} is also in {found[name][0].name}")
            found[name] = file, entry
    wanted, shapes = file_names(spec, 0), spec.tensor_shapes()
    present = set(found)
    if spec.tied:
        present.discard("lm_head.weight")  # a second copy; compared with the embedding below
    check_names(path, wanted, present, HF_IGNORED)
    copy = {"lm_head.weight"} & set(found) if spec.tied else set()
    places = {}
    for canonical, name in (*wanted.items(), *((name, name) for name in copy)):
        file, entry = found[name]
        if entry.type not in FLOATS:
            raise ModelError(f"{file}: tensor {name!r} has type {entry.type}; supported: {', '.join(FLOATS)}")
        check_shape(file, name, entry.shape, shapes["embed" if name in copy else canonical])
        places[canonical] = _place(file, entry.type, entry.offset, entry.shape)
    if copy:
        _check_tied(path, places["embed"], places.pop("lm_head.weight"))
    return places


def _place(path: Path, kind: str, offset: int, shape: tuple[int, ...]) -> _Place:
    rows = shape[0] if len(shape) > 1 else 1
    return _Place(path, kind, offset, rows, shape[-1])


def _check_tied(path: Path, embedding: _Place, head: _Place) -> None:
    for mine, other in zip(_rows("embed", embedding), _rows("lm_head.weight", head), strict=True):
        if not np.array_equal(values(mine), values(other)):
            raise ModelError(
                f"{path}: config.json ties lm_head.weight to the embedding, but the file has another lm_head.weight; "
                f"set tie_word_embeddings to false there"
            )


def _read(places: dict[str, _Place]) -> Iterator[Chunk]:
    """In the order of the files and of the offsets in them."""
    for name, place in sorted(places.items(), key=lambda item: (item[1].path, item[1].offset)):
        for chunk in _rows(name, place):
            if not finite(chunk):
                raise ModelError(f"{place.path}: tensor {name!r} has values that are not finite: the file is corrupt")
            yield chunk if chunk.type in NATIVE else _floats(place, chunk)


def _floats(place: _Place, chunk: Chunk) -> Chunk:
    """A chunk of blocks that have no kernels of their own, as float32."""
    found = values(chunk)
    if not np.isfinite(found.sum(dtype=np.float32)):
        raise ModelError(f"{place.path}: tensor {chunk.name!r} has values that are not finite: the file is corrupt")
    return Chunk(chunk.name, "F32", chunk.first, found.view(np.uint8))


def _rows(name: str, place: _Place) -> Iterator[Chunk]:
    """Read, and not mapped: pages of a mapped file would count as this process's memory until all is packed. Chunks of
    tensors with equal shapes hold equal rows, whatever their types."""
    block, size = _BLOCKS[place.type]
    width = place.width // block * size
    step = max(1, CHUNK // (4 * place.width))
    try:
        with place.path.open("rb") as file:
            for first in range(0, place.rows, step):
                count = min(step, place.rows - first)
                file.seek(place.offset + first * width)
                raw = np.fromfile(file, np.uint8, count * width)
                if len(raw) != count * width:
                    raise ModelError(f"{place.path}: ended while it was read; was it replaced?")
                yield Chunk(name, place.type, first, raw.reshape(count, width))
    except OSError as e:
        raise ModelError(f"{place.path}: cannot be read: {e.strerror or e}") from e


def finite(chunk: Chunk) -> bool:
    """False when a value, or the scale of a block, is infinite or not a number. Blocks that are not `NATIVE` are not
    looked at."""
    if chunk.type == "F32":
        return bool(((chunk.raw.view("<u4") & 0x7FFFFFFF).max(initial=0)) < 0x7F800000)
    if chunk.type == "F16":
        return bool((chunk.raw.view("<u2") & 0x7FFF).max(initial=0) < 0x7C00)
    if chunk.type == "BF16":
        return bool((chunk.raw.view("<u2") & 0x7FFF).max(initial=0) < 0x7F80)
    blocks = chunk.raw.reshape(-1, _BLOCKS[chunk.type][1])
    scales = (blocks[:, at + 1] & 0x7F for at in _SCALES.get(chunk.type, ()))  # the upper byte of a float16
    return all(int(upper.max(initial=0)) < 0x7C for upper in scales)


def random_chunks(spec: Spec, seed: int = 0) -> Iterator[Chunk]:
    """What `models.load.random_weights` draws, in its order: torch's generator is numpy's Mersenne twister, and its
    normal numbers are Box and Muller's of 24-bit uniform ones, in blocks of 16. Logarithms and sines may round
    differently."""
    bits = np.random.MT19937()
    bits._legacy_seeding(seed)  # the seeding of the original, which torch has too
    for name, shape in spec.tensor_shapes().items():
        part = name.rpartition(".")[2]
        if part.endswith("norm"):
            drawn = np.ones((1, *shape), np.float32)
        else:
            scale = 0.02 if len(shape) == 1 else shape[1] ** -0.5
            scale *= (2 * spec.layers) ** -0.5 if part in ("o", "down") else 1.0
            drawn = (_normal(bits, int(np.prod(shape))) * np.float32(scale)).reshape((-1, shape[-1]))
        for first in range(0, len(drawn), step := max(1, CHUNK // (4 * shape[-1]))):
            some = np.ascontiguousarray(drawn[first : first + step])
            yield Chunk(name, "F32", first, some.view(np.uint8))


def _normal(bits: np.random.MT19937, count: int) -> F32:
    if count < 16:
        raise ModelError(f"random weights: a tensor of {count} values is too small; random presets have 16 or more")
    out = np.zeros(count, np.float32)
    whole = count - count % 16
    for first in range(0, whole, _DRAWN):
        stop = min(first + _DRAWN, whole)
        out[first:stop] = _box_muller(_uniform(bits, stop - first))
    if count % 16:  # what is left over draws its share, and then the last 16 are drawn anew, as a block of their own
        _uniform(bits, count - whole)
        out[count - 16 :] = _box_muller(_uniform(bits, 16))
    return out


def _uniform(bits: np.random.MT19937, count: int) -> F32:
    raw = bits.random_raw(count).astype(np.uint32) & np.uint32((1 << 24) - 1)
    return raw.astype(np.float32) * np.float32(2.0**-24)


def _box_muller(uniform: F32) -> F32:
    """Box and Muller 1958, eight pairs a block: radii from the first eight numbers, angles from the last."""
    pairs = uniform.reshape(-1, 2, 8)
    radius = np.sqrt(np.float32(-2) * np.log(np.float32(1) - pairs[:, 0]))
    angle = np.float32(2 * np.pi) * pairs[:, 1]
    return np.stack((radius * np.cos(angle), radius * np.sin(angle)), 1).reshape(-1)
