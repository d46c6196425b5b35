"""What the cores themselves can do. In: the native library, cores. Out: read bandwidth and product rates of one moment.

Bandwidth: a loop of loads over memory that is mapped as the kernels map weights (huge pages where the system grants
them) and, beside it, over small pages, which the KV pool lies on. Rates: VDPBF16PS and VPDPBUSD on registers. The loops
are in probe.cpp, compiled here; without a compiler, or the instructions, `ramet_linear` stands in and `how` says so:
one row times a large weight for the bandwidth, many rows times one that fits the caches for the rates.
"""

from __future__ import annotations

import ctypes as c
import mmap
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cpu_parts.pins import place
from ramet.kernels.cpu import library
from ramet.kernels.cpu.library import Library, Memory, Pool, Weight
from ramet.runtime.kvpool import KvPool

SOURCE = Path(__file__).with_name("probe.cpp")
COMPILERS = ("c++", "g++", "clang++")
ROUNDS = 4_000_000  # of a loop on registers: some 15 ms
OPERATIONS = {"bf16": 12 * 64, "int8": 12 * 128}  # of a round
LEVELS = {"bf16": ("avx512_bf16", "amx"), "int8": ("avx512_vnni", "avx512_bf16")}  # that have the instruction
KINDS = {"bf16": library.BF16, "int8": library.INT8, "int4": library.INT4}
BEST_OF = 5
# Of the product that fits the second caches; its result is below 128 KiB, so that the C library maps no fresh pages
# for it, whose faults would be in the time.
OUTPUTS, INPUTS, ROWS = 512, 1024, 60


@dataclass(frozen=True, slots=True)
class Limits:
    """Bytes read per second by all threads, by one, by all on small pages (nan where it was not measured); operations
    per second (a multiplication and an addition are two) on bf16 and 8-bit operands."""

    bandwidth: float
    bf16: float
    int8: float
    one_thread: float = float("nan")
    small_pages: float = float("nan")


def compiled(folder: Path) -> c.CDLL | None:
    """probe.cpp as a library in `folder`; None where nothing compiles it."""
    compiler = next((found for name in COMPILERS if (found := shutil.which(name))), None)
    if compiler is None:
        return None
    target = folder / "probe.so"
    command = [compiler, "-std=c++17", "-O3", "-fPIC", "-shared", "-w", str(SOURCE), "-o", str(target)]
    if subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, check=False).returncode:
        return None
    probe = c.CDLL(str(target))
    probe.probe_read.argtypes, probe.probe_read.restype = [c.c_void_p, c.c_int64], c.c_uint64
    return probe


def together(acts: Sequence[Callable[[], object]], cores: Sequence[int]) -> float:
    """Seconds from the first start to the last end of calls that leave the interpreter's lock, one thread each, on the
    given cores (none: where the system puts them)."""
    spans: list[tuple[float, float]] = []
    ready = threading.Barrier(len(acts))

    def run(number: int) -> None:
        if cores:
            place(0, cores[number % len(cores)])
        ready.wait()
        start = time.perf_counter()
        acts[number]()
        spans.append((start, time.perf_counter()))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(acts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return max(end for _, end in spans) - min(start for start, _ in spans)


class Meter:
    """Measures whenever it is asked. `block`: bytes that are read, far more than the caches hold. `how`: by what each
    limit is measured."""

    def __init__(self, lib: Library, threads: int, cores: Sequence[int], block: int) -> None:
        self._lib, self._threads, self._cores = lib, threads, cores
        with tempfile.TemporaryDirectory() as folder:
            self._probe = compiled(Path(folder))  # stays loaded when its file is gone
        self._pool = Pool(lib, threads)
        self._block = block = max(1, block // (128 * threads)) * 128 * threads
        self._huge, self._small = lib.map(block), KvPool(max(block, mmap.PAGESIZE))
        self._huge.view(0, block)[:] = 1  # zeros that were never written are all one page
        self._small.bytes[:] = 1
        rng = np.random.default_rng(0)
        self._cached = {name: _weight(lib, self._pool, kind, rng) for name, kind in KINDS.items()}
        self._rows = rng.standard_normal((ROWS, INPUTS), np.float32)
        self._one = rng.standard_normal((1, INPUTS), np.float32)
        self.how = {name: "registers" if self._fits(name) else "ramet_linear" for name in ("bf16", "int8")}
        self.how["bandwidth"] = "loads" if self._probe else "ramet_linear"

    def __call__(self) -> tuple[Limits, Mapping[str, float]]:
        """The limits now, each the best of a few passes, and operations per second of `ramet_linear` by kind of
        weights, on operands that fit the caches."""
        products = {name: self._linear(name) for name in KINDS}
        rates = {name: self._rate(name) if self._fits(name) else products[name] for name in OPERATIONS}
        if self._probe is None:
            return Limits(self._streamed(), **rates), products
        wide, one = self._read(self._huge.address, self._threads), self._read(self._huge.address, 1)
        return Limits(
            wide, **rates, one_thread=one, small_pages=self._read(self._small.address, self._threads)
        ), products

    def close(self) -> None:
        """End the threads."""
        self._pool.close()

    def _fits(self, name: str) -> bool:
        return self._probe is not None and self._lib.level in LEVELS[name]

    def _rate(self, name: str) -> float:
        loop = getattr(self._probe, f"probe_{name}")
        loop.argtypes = [c.c_int64]

        def act() -> None:
            loop(ROUNDS)

        seconds = min(together([act] * self._threads, self._cores) for _ in range(BEST_OF))
        return self._threads * ROUNDS * OPERATIONS[name] / seconds

    def _read(self, address: int, threads: int) -> float:
        assert self._probe is not None, "only a compiled loop reads"
        loop, part = self._probe.probe_read, self._block // threads

        def reader(number: int) -> Callable[[], object]:
            return lambda: loop(address + number * part, part)

        acts = [reader(number) for number in range(threads)]
        return threads * part / min(together(acts, self._cores) for _ in range(BEST_OF))

    def _linear(self, name: str) -> float:
        weight, _ = self._cached[name]
        seconds = min(_seconds(lambda: self._pool.linear(weight, self._rows)) for _ in range(4 * BEST_OF))
        return 2 * ROWS * OUTPUTS * INPUTS / seconds

    def _streamed(self) -> float:
        outputs = max(32, self._block // (2 * INPUTS) // 32 * 32)
        weight = Weight(library.BF16, outputs, INPUTS, self._huge.address, None)
        return (
            2 * outputs * INPUTS / min(_seconds(lambda: self._pool.linear(weight, self._one)) for _ in range(BEST_OF))
        )


def _seconds(act: Callable[[], object]) -> float:
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def _weight(lib: Library, pool: Pool, kind: int, rng: np.random.Generator) -> tuple[Weight, Memory]:
    """A packed random weight, and its memory, which must live as long."""
    memory = lib.map(lib.weight_bytes(kind, OUTPUTS, INPUTS))
    values, columns = rng.standard_normal((OUTPUTS, INPUTS), np.float32), np.arange(OUTPUTS, dtype=np.int32)
    pool.pack(kind, OUTPUTS, INPUTS, memory.view(0, memory.nbytes), "F32", values, columns)
    return Weight(kind, OUTPUTS, INPUTS, memory.address, None), memory
