"""Native runners for tests: random weights, packed now. In: a spec, a dtype. Out: a `NativeRunner`."""

from __future__ import annotations

import pytest

from ramet.kernels.cpu import library
from ramet.runtime.models.spec import Spec
from ramet.runtime.models.stored import Stored, random_chunks
from ramet.runtime.native import NativeRunner, available
from ramet.runtime.packed import Packed, pack

needs_native = pytest.mark.skipif(available() != "", reason=available() or "the native kernels are here")


def packed(spec: Spec, dtype: str, seed: int = 0) -> Packed:
    """Random weights, those of `models.load.random_weights` of the same seed."""
    lib = library.load()
    return pack(lib, library.Pool(lib, 1), spec, dtype, Stored(random_chunks(spec, seed)))


def native(weights: Packed, *, threads: int = 1, level: str | None = None, **sizes: int) -> NativeRunner:
    """A runner over `weights` with a pool of its own."""
    pool = library.Pool(library.load(), threads, level)
    return NativeRunner(weights, pool, **{"capacity": 1400, "rows": 8, "context": 512} | sizes)
