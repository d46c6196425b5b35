"""The native library of the CPU, loaded with ctypes: what kernels/cpu/native/ramet_cpu.h declares, typed.

In: numpy arrays. Out: the same arrays, written. The library checks all sizes and indices; its error codes become
`ModelError`s (of weights, models and memory) or `EngineError`s. The interpreter's lock is released during every call.
"""

from __future__ import annotations

import ctypes as c
import platform
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ramet.frontend.errors import EngineError, ModelError
from ramet.kernels.cpu.ragged import Ragged
from ramet.kernels.cpu.room import Drawn, Room, address
from ramet.kernels.cpu.sources import ARM, LIBRARY
from ramet.runtime.batch import Draws

U8 = NDArray[np.uint8]
I32 = NDArray[np.int32]
U32 = NDArray[np.uint32]
F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

ABI = 2
BLOCK = 64  # positions of a KV block; groups start and stop at multiples of it
MOST_THREADS = 256
_REMEMBERED = 64 << 20  # bytes of logits that are not kept alive for nothing
BF16, INT8, INT4 = 0, 1, 2
_X86_LEVELS, _ARM_LEVELS = ("avx2", "avx512", "avx512_vnni", "avx512_bf16", "amx"), ("neon", "neon_dot")
LEVELS: tuple[str, ...] = (
    "portable",
    *(_ARM_LEVELS if platform.machine() in ARM else _X86_LEVELS),
)  # of this architecture, ascending
# Source types of `Pool.pack` by the names that GGUF and safetensors have for them.
SOURCES = {
    "F32": 0,
    "F16": 1,
    "BF16": 2,
    "Q8_0": 3,
    "Q4_0": 4,
    "Q4_1": 5,
    "Q4_K": 6,
    "Q6_K": 7,
    "Q5_0": 8,
    "Q5_K": 9,
}
_MODEL_CODES = (2, 3, 5, 6)  # RAMET_SHAPE, RAMET_KIND, RAMET_MEMORY, RAMET_FEATURE


class Weight(c.Structure):
    """`RametWeight`."""

    _fields_ = (
        ("kind", c.c_int64),
        ("n", c.c_int64),
        ("k", c.c_int64),
        ("data", c.c_void_p),
        ("bias", c.c_void_p),
    )


class Layer(c.Structure):
    """`RametLayer`."""

    _fields_ = (
        *((name, Weight) for name in ("qkv", "o", "gate_up", "down")),
        *((name, c.c_void_p) for name in ("norm1", "norm2", "q_norm", "k_norm")),
        ("window", c.c_int64),
    )


class Model(c.Structure):
    """`RametModel`."""

    _fields_ = (
        *(
            (name, c.c_int64)
            for name in ("layers", "hidden", "heads", "kv_heads", "head_dim", "intermediate", "vocab", "context")
        ),
        ("eps", c.c_float),
        ("scale", c.c_float),
        ("layer", c.POINTER(Layer)),
        ("head", Weight),
        ("norm", c.c_void_p),
        ("embedding", c.c_void_p),
        ("cos", c.c_void_p),
        ("sin", c.c_void_p),
    )


class Cache(c.Structure):
    """`RametCache`."""

    _fields_ = (("data", c.c_void_p), ("capacity", c.c_int64))


class Memory:
    """Zeroed memory on huge pages where the system grants them, at a multiple of 2 MiB; given back when neither this
    nor a view of it is left. Raises `ModelError` when there is none."""

    def __init__(self, lib: Any, nbytes: int) -> None:
        address = lib.ramet_map(nbytes)
        if not address:
            raise ModelError(f"no memory for {nbytes / 2**30:.2f} GiB: choose a smaller model or pool")
        self.address, self.nbytes = int(address), nbytes
        self._bytes: Any = (c.c_uint8 * nbytes).from_address(self.address)
        weakref.finalize(self._bytes, lib.ramet_unmap, self.address, nbytes).atexit = False

    def view(self, offset: int, nbytes: int) -> U8:
        """A part of it, `[nbytes] uint8`; the array keeps the memory."""
        return np.frombuffer(self._bytes, np.uint8, nbytes, offset)


class Library:
    """The loaded library. Raises `ModelError` when it cannot be loaded or has another ABI."""

    def __init__(self, path: Path) -> None:
        try:
            self.handle: Any = c.CDLL(str(path))
            _declare(self.handle)
        except (OSError, AttributeError) as error:
            raise ModelError(f"{path}: the native kernels cannot be loaded: {error}; build ramet again") from None
        self.path, self.abi = path, int(self.handle.ramet_abi_version())
        if self.abi != ABI:
            raise ModelError(f"{path}: has ABI {self.abi}, wanted {ABI}: build ramet again")

    @property
    def level(self) -> str:
        """The highest level of instructions that this machine runs."""
        return LEVELS[int(self.handle.ramet_features())]

    def weight_bytes(self, kind: int, n: int, k: int) -> int:
        """Bytes of a packed weight of n outputs and k inputs; 0 when there is none of that kind or size."""
        return int(self.handle.ramet_weight_bytes(kind, n, k))

    def row_bytes(self, source: str, k: int) -> int:
        """Bytes of a source row of k values; 0 when k is no whole number of the type's blocks."""
        return int(self.handle.ramet_row_bytes(SOURCES[source], k))

    def map(self, nbytes: int) -> Memory:
        """Zeroed memory. Raises `ModelError`."""
        return Memory(self.handle, nbytes)

    def unpack(self, kind: int, n: int, k: int, packed: U8, columns: I32) -> F32:
        """Outputs `columns` of a packed weight as `[len(columns), k] float32`."""
        _sized("packed", packed, self.weight_bytes(kind, n, k))
        values = np.empty((len(columns), k), np.float32)  # covered: the call writes k values of each, or raises
        at = np.ascontiguousarray(columns, np.int32)
        code = self.handle.ramet_unpack(kind, n, k, packed.ctypes.data, len(at), at.ctypes.data, values.ctypes.data)
        self.check(code, f"unpacking a weight of {n} x {k}")
        return values

    def check(self, code: int, doing: str) -> None:
        """Raise the error that a code means."""
        if code:
            kind = ModelError if code in _MODEL_CODES else EngineError
            raise kind(f"{doing}: {self.handle.ramet_error(code).decode()}")


class Pool:
    """Threads, and the scratch memory of their forwards; one call at a time. `level` (of `LEVELS`) is the highest one
    of the machine unless it is given. Raises `EngineError` for a number of threads, `ModelError` for a level, that
    cannot be had."""

    def __init__(self, lib: Library, threads: int, level: str | None = None) -> None:
        if not 1 <= threads <= MOST_THREADS:
            raise EngineError(f"threads={threads}: must be between 1 and {MOST_THREADS}")
        if level is not None and level not in LEVELS:
            raise ModelError(f"level={level!r}: choose {', '.join(LEVELS)}")
        self.lib, self.threads, self._room = lib, threads, Room(16)
        handle = c.c_void_p()
        lib.check(lib.handle.ramet_pool_create(threads, c.byref(handle)), f"threads={threads}")
        self._handle: Any = handle
        self._known: tuple[F32, int] | None = None
        self._end = weakref.finalize(self, lib.handle.ramet_pool_destroy, handle)
        if level is not None:
            lib.check(lib.handle.ramet_set_level(handle, LEVELS.index(level)), f"level={level!r}")

    @property
    def level(self) -> str:
        """The level at which this pool computes."""
        return LEVELS[int(self.lib.handle.ramet_level(self._open()))]

    def close(self) -> None:
        """End the threads; nothing can be computed after this."""
        self._handle = None
        self._end()

    def pack(self, kind: int, n: int, k: int, packed: U8, source: str, values: NDArray[Any], columns: I32) -> None:
        """Pack rows `values` (of type `source`, as bytes or elements, contiguous) into outputs `columns` of the weight
        `packed`, which was zero before its first rows."""
        _sized("packed", packed, self.lib.weight_bytes(kind, n, k))
        _sized("values", values, self.lib.row_bytes(source, k) * len(columns))
        at = np.ascontiguousarray(columns, np.int32)
        code = self.lib.handle.ramet_pack(
            self._open(), kind, n, k, packed.ctypes.data, SOURCES[source], values.ctypes.data, len(at), at.ctypes.data
        )
        self.lib.check(code, f"packing {source} rows into a weight of {n} x {k}")

    def linear(self, weight: Weight, x: F32) -> F32:
        """`x` `[m, k]` times a packed weight, plus its bias: `[m, n] float32`."""
        if x.ndim != 2 or x.shape[1] != weight.k:
            raise ModelError(f"x: has shape {list(x.shape)}, the weight takes {weight.k} inputs")
        x = np.ascontiguousarray(x, np.float32)
        y = np.empty((len(x), weight.n), np.float32)  # covered: the call writes every element, or raises
        code = self.lib.handle.ramet_linear(self._open(), c.byref(weight), len(x), x.ctypes.data, y.ctypes.data)
        self.lib.check(code, f"a product of {len(x)} rows and a weight of {weight.n} x {weight.k}")
        return y

    def check(self, model: Model, cache: Cache) -> None:
        """Raise `ModelError` or `EngineError` unless both are complete and fit together."""
        code = self.lib.handle.ramet_check(c.byref(model), c.byref(cache))
        self.lib.check(code, "the model as the native kernels see it")

    def forward(self, model: Model, cache: Cache, batch: Ragged, logits: F32) -> None:
        """Compute a batch: K and V of its tokens go to the cache, logits of its `rows` to `logits` `[rows, vocab]`."""
        if logits.nbytes < batch.rows * model.vocab * 4:
            raise ModelError(f"logits: have {logits.nbytes} bytes, {batch.rows} rows of {model.vocab} do not fit")
        code = self.lib.handle.ramet_forward(
            self._open(), c.byref(model), c.byref(cache), c.byref(batch), self._at(logits)
        )
        if code:
            self.lib.check(code, f"a forward of {batch.tokens} tokens")

    def choose(
        self,
        logits: F32,
        at: I32,
        edited: Mapping[int, F32],
        allowed: Mapping[int, U32],
        draws: Draws,
        noise: F64 | None = None,
    ) -> I32:
        """See `draw.Chooser`: a token of each draw, which are shared out to the threads."""
        count = len(at)
        if not count:
            return np.zeros(0, np.int32)
        room = self._room_for(count)
        drawn = room.drawn
        drawn.edited = drawn.allowed = drawn.uniform = None
        vocab = logits.shape[-1]
        for name, nbytes, given in (("edited", 4 * vocab, edited), ("allowed", -(-vocab // 32) * 4, allowed)):
            if given:
                _point(room.arrays[name][:count], name, nbytes, given)
                setattr(drawn, name, room.places[name])
        if noise is None:
            room.arrays["position"][:count] = draws.positions
        else:
            room.arrays["uniform"][:count] = noise
            drawn.uniform = room.places["uniform"]
        room.hold("draw", draws.words)
        self._draw(drawn, logits, at)
        found: I32 = room.arrays["token"][:count].copy()
        return found

    def normalisers(self, logits: F32, at: I32) -> F64:
        """See `draw.Chooser`: the log of the sum of exp of each row."""
        if not len(at):
            return np.zeros(0, np.float64)
        room = self._room_for(len(at))
        self._draw(room.scored, logits, at)
        found: F64 = room.arrays["normaliser"][: len(at)].copy()
        return found

    def _room_for(self, count: int) -> Room:
        if self._room.count < count:
            self._room = Room(2 * count)
        return self._room

    def _draw(self, drawn: Drawn, logits: F32, at: I32) -> None:
        """With the rows `at` of the logits."""
        drawn.logits = self._at(logits)
        drawn.count = len(at)
        drawn.rows, drawn.vocab = logits.shape
        self._room.hold("row", at)
        code = self.lib.handle.ramet_draw(self._open(), c.byref(drawn))
        if code:
            self.lib.check(code, f"{len(at)} draws")

    def _at(self, logits: F32) -> int:
        """The address of logits. Raises `ModelError` unless they are `[U, V] float32`, contiguous. A runner uses the
        same array again and again: what is known of the last one is not asked again."""
        if self._known is not None and self._known[0] is logits:
            return self._known[1]
        if logits.ndim != 2 or logits.dtype != np.float32 or not logits.flags.c_contiguous:
            raise ModelError(f"logits: have to be contiguous rows of float32; they are {logits.dtype} {logits.shape}")
        at = address(logits)
        self._known = (logits, at) if logits.nbytes <= _REMEMBERED else None
        return at

    def _open(self) -> Any:
        if self._handle is None:
            raise EngineError("the pool is closed: make another one")
        return self._handle


def load(path: Path | None = None) -> Library:
    """The library at `path`, or the one that was built with the package. Raises `ModelError` with the reason when there
    is none."""
    if path is not None:
        return Library(path)
    built = sorted(Path(__file__).parent.glob(f"{LIBRARY}*.so"))
    if not built:
        raise ModelError("the native kernels were not built (no C++17 compiler at installation): install ramet again")
    return Library(built[0])


def _sized(field: str, array: NDArray[Any], nbytes: int) -> None:
    if array.nbytes < nbytes or not array.flags.c_contiguous:
        raise ModelError(f"{field}: has {array.nbytes} bytes, contiguous or not, where {nbytes} contiguous are needed")


def _point(addresses: NDArray[Any], field: str, nbytes: int, given: Mapping[int, NDArray[Any]]) -> None:
    """The addresses of arrays of at least `nbytes` bytes each, by draw; 0 for draws that have none."""
    addresses[:] = 0
    for r, array in given.items():
        _sized(field, array, nbytes)
        addresses[r] = array.ctypes.data


def _declare(lib: Any) -> None:
    i, p = c.c_int64, c.c_void_p
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "ramet_abi_version": (i, []),
        "ramet_error": (c.c_char_p, [i]),
        "ramet_features": (i, []),
        "ramet_level_name": (c.c_char_p, [i]),
        "ramet_pool_create": (i, [i, p]),
        "ramet_pool_destroy": (None, [p]),
        "ramet_set_level": (i, [p, i]),
        "ramet_level": (i, [p]),
        "ramet_forward": (i, [p, p, p, p, p]),
        "ramet_check": (i, [p, p]),
        "ramet_draw": (i, [p, p]),
        "ramet_weight_bytes": (i, [i, i, i]),
        "ramet_row_bytes": (i, [i, i]),
        "ramet_pack": (i, [p, i, i, i, p, i, p, i, p]),
        "ramet_unpack": (i, [i, i, i, p, i, p, p]),
        "ramet_linear": (i, [p, p, i, p, p]),
        "ramet_map": (p, [i]),
        "ramet_unmap": (None, [p, i]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
