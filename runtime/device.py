"""A device as the graph runner sees it: streams, staging, fetching, captured graphs, memory.

In: host arrays and functions that launch work. Out: device tensors, results on the host, graphs to replay. `CudaDevice`
is a GPU; `HostDevice` runs everything at once on the CPU, so that whatever is built on a `Device` is tested without a
GPU. torch.cuda is touched in `CudaDevice` and `look` alone, never at import.
"""

from __future__ import annotations

import contextlib
import importlib.util
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from ramet.frontend.errors import EngineError
from ramet.runtime.batch import I32
from ramet.runtime.sizing import free_memory, size

CAPABILITY = (8, 0)  # the oldest GPUs (Ampere) whose tensor cores take bfloat16


class Graph(Protocol):
    """Captured work."""

    def replay(self) -> None:
        """Launch it again, on the tensors that it was captured with."""


class Fetch(Protocol):
    """Tensors on their way to the host."""

    def wait(self) -> tuple[torch.Tensor, ...]:
        """The tensors, on the host, once they are there."""


class Device(Protocol):
    """What the runner needs. All methods are called by one thread; `launching` surrounds whatever launches work, and
    work runs in the order in which it was launched. `place` is where tensors live; `name` is for people."""

    place: torch.device
    name: str

    def launching(self) -> AbstractContextManager[object]:
        """Makes the compute stream current; not to be entered while it is."""

    def stage(self, *parts: I32) -> torch.Tensor:
        """A fresh device tensor `[N] int32` with `parts` one behind the other, copied beside the computation; what is
        launched from now on sees it complete. `parts` may be changed as soon as this returns."""

    def fetch(self, tensors: Sequence[torch.Tensor]) -> Fetch:
        """Copy tensors to the host as they are after all work launched so far, beside what is launched later."""

    def capture(self, run: Callable[[], None]) -> Graph:
        """Run `run` once (which compiles what it needs), then record what it launches. It must launch the same work
        on the same tensors each time, allocate nothing that outlives it, and not wait for the device."""

    def free(self) -> int:
        """Bytes that can be allocated."""

    def workspace(self, run: Callable[[], None]) -> int:
        """Run `run`; the most bytes that it had allocated at once, beyond what was allocated before."""

    def trim(self) -> None:
        """Give memory that is allocated but unused back."""

    def healthy(self) -> bool:
        """False once no work can run any more; waits for all launched work."""


@dataclass(frozen=True, slots=True)
class Present:
    """Tensors that are on the host already."""

    tensors: tuple[torch.Tensor, ...]

    def wait(self) -> tuple[torch.Tensor, ...]:
        """At once."""
        return self.tensors


@dataclass(frozen=True, slots=True)
class Closure:
    """A graph of the host: its replay calls the function."""

    run: Callable[[], None]

    def replay(self) -> None:
        """Call it."""
        self.run()


class HostDevice:
    """The CPU as a `Device`, for tests: everything has happened when a method returns. `memory` bytes are said to be
    free (None: what the machine has); a `workspace` cannot be seen and is said to be `extra`."""

    def __init__(self, memory: int | None = None, extra: int = 0) -> None:
        self.place = torch.device("cpu")
        self.name = "cpu"
        self._memory, self._extra = memory, extra
        self._launches = False

    @contextlib.contextmanager
    def launching(self) -> Iterator[None]:
        """Nothing to make current, but as strict as a stream, which cannot be entered twice."""
        if self._launches:
            raise RuntimeError("launching() is entered already")
        self._launches = True
        try:
            yield
        finally:
            self._launches = False

    def stage(self, *parts: I32) -> torch.Tensor:
        """A copy."""
        return torch.from_numpy(np.concatenate(parts))

    def fetch(self, tensors: Sequence[torch.Tensor]) -> Present:
        """Copies."""
        return Present(tuple(tensor.clone() for tensor in tensors))

    def capture(self, run: Callable[[], None]) -> Closure:
        """Run it once and keep it."""
        run()
        return Closure(run)

    def free(self) -> int:
        """As stated, or the machine's."""
        return free_memory() if self._memory is None else self._memory

    def workspace(self, run: Callable[[], None]) -> int:
        """Run it; as stated."""
        run()
        return self._extra

    def trim(self) -> None:
        """Nothing is cached."""

    def healthy(self) -> bool:
        """Always."""
        return True


@dataclass(frozen=True, slots=True)
class Landing:
    """Pinned host tensors that a copy is filling, and the event that ends it. Keeps its sources until then."""

    tensors: tuple[torch.Tensor, ...]
    sources: tuple[torch.Tensor, ...]
    done: torch.cuda.Event

    def wait(self) -> tuple[torch.Tensor, ...]:
        """Wait for the event."""
        self.done.synchronize()
        return self.tensors


class CudaDevice:
    """The current CUDA device: a stream for computation, one for copies to it and one for copies from it (a result that
    waits for its step must not hold up what the next step needs), one memory pool for all graphs.

    Host memory for copies is pinned, and temporary: torch's host allocator hands a pinned block out again only after
    the copies that used it. Raises `EngineError` when CUDA cannot be used here.
    """

    def __init__(self) -> None:
        if reason := unusable(look()):
            raise EngineError(f"device='cuda': {reason}; device='cpu' runs here")
        self.place = torch.device("cuda", torch.cuda.current_device())
        self.name = torch.cuda.get_device_name(self.place)
        stream: Callable[..., torch.cuda.Stream] = torch.cuda.Stream
        self._compute, self._inward, self._outward = (stream(self.place) for _ in range(3))
        self._pool = torch.cuda.graph_pool_handle()
        self._spoilt: list[torch.cuda.CUDAGraph] = []

    def launching(self) -> AbstractContextManager[object]:
        """The compute stream. A stream is a context of its own; `torch.cuda.stream` does the same in ten times as long,
        six times a step."""
        return self._compute

    def stage(self, *parts: I32) -> torch.Tensor:
        """On a stream of its own, from a pinned temporary; the compute stream waits for it."""
        host = torch.empty(sum(map(len, parts)), dtype=torch.int32, pin_memory=True)  # all is written below
        np.concatenate(parts, out=host.numpy())
        with self._inward:
            moved = host.to(self.place, non_blocking=True)
            ready = self._inward.record_event()
        self._compute.wait_event(ready)
        moved.record_stream(self._compute)  # its memory belongs to the copying stream, its readers to the other one
        return moved

    def fetch(self, tensors: Sequence[torch.Tensor]) -> Landing:
        """On a stream of its own, after what the compute stream has so far."""
        self._outward.wait_event(self._compute.record_event())
        with self._outward:
            # every element is written by the copy
            hosts = tuple(torch.empty(t.shape, dtype=t.dtype, pin_memory=True) for t in tensors)
            for host, tensor in zip(hosts, tensors, strict=True):
                host.copy_(tensor, non_blocking=True)
            return Landing(hosts, tuple(tensors), self._outward.record_event())

    def capture(self, run: Callable[[], None]) -> Graph:
        """Into the one pool. torch.cuda.graph would also wait for the device and empty the allocator's cache each
        time."""
        run()
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
        try:
            run()
        except BaseException:
            with contextlib.suppress(RuntimeError):  # what went wrong is the better message
                self._end(graph)
            raise
        self._end(graph)
        return graph

    def _end(self, graph: torch.cuda.CUDAGraph) -> None:
        """End a capture. Of one that a forbidden call has spoilt torch ends nothing else: its allocators would go on as
        if it were under way, reuse nothing of what is freed, and let nothing into this pool any more."""
        try:
            graph.capture_end()
        except RuntimeError:
            with contextlib.suppress(RuntimeError):  # raised where all that had ended
                torch._C._cuda_endAllocateToPool(self.place.index, self._pool)
                self._spoilt.append(graph)  # the host's allocator goes on asking it
                self._pool = torch.cuda.graph_pool_handle()
            raise

    def free(self) -> int:
        """What the driver has, and what the allocator holds unused."""
        torch.cuda.synchronize(self.place)
        free, _ = torch.cuda.mem_get_info(self.place)
        return free + torch.cuda.memory_reserved(self.place) - torch.cuda.memory_allocated(self.place)

    def workspace(self, run: Callable[[], None]) -> int:
        """From the allocator's own statistics."""
        torch.cuda.reset_peak_memory_stats(self.place)
        before = torch.cuda.memory_allocated(self.place)
        run()
        return torch.cuda.max_memory_allocated(self.place) - before

    def trim(self) -> None:
        """Empty the allocator's cache; a device that is lost cannot, and need not."""
        with contextlib.suppress(RuntimeError):
            torch.cuda.empty_cache()

    def healthy(self) -> bool:
        """An error of the device (illegal access, ECC, a GPU that fell off the bus) ends its context: every later call
        reports it again."""
        try:
            torch.cuda.synchronize(self.place)
        except RuntimeError:
            return False
        return True


@dataclass(frozen=True, slots=True)
class Findings:
    """What a machine offers: torch's version and the CUDA version that it was built for (None: none), whether a device
    is there, its name and compute capability, whether Triton is installed."""

    version: str
    cuda: str | None
    available: bool = False
    name: str = ""
    capability: tuple[int, int] = (0, 0)
    triton: bool = False


def look() -> Findings:
    """This machine."""
    cuda, triton = torch.version.cuda, importlib.util.find_spec("triton") is not None
    if cuda is None or not torch.cuda.is_available():
        return Findings(torch.__version__, cuda, triton=triton)
    name, capability = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
    return Findings(torch.__version__, cuda, True, name, capability, triton)


def unusable(found: Findings) -> str:
    """Why the engine cannot run on CUDA there, and what would help; empty when it can."""
    if found.cuda is None:
        return f"torch {found.version} was built without CUDA; install a CUDA build of torch"
    if not found.available:
        return (
            f"torch {found.version} (CUDA {found.cuda}) finds no usable GPU; look for one, and its driver, with "
            f"nvidia-smi, and at CUDA_VISIBLE_DEVICES"
        )
    if found.capability < CAPABILITY:
        have, need = (".".join(str(part) for part in pair) for pair in (found.capability, CAPABILITY))
        return f"{found.name} has compute capability {have}; the kernels need {need} or later"
    if not found.triton:
        return "the kernels need Triton, which is not installed; install ramet[gpu]"
    return ""


def place_kernels(fallback: Path) -> Path:
    """Where Triton is going to keep compiled kernels: its own choice (TRITON_CACHE_DIR, else the home directory), or,
    where that cannot be written, as with a container's read-only home, `fallback`, or a folder of this process."""
    from triton import knobs

    for folder in (Path(knobs.cache.dir), fallback):
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                break
    else:
        folder = Path(tempfile.mkdtemp(prefix="ramet-kernels-"))
    if folder != Path(knobs.cache.dir):
        knobs.cache.dir = str(folder)
    return folder


def start_kernels() -> None:
    """Have Triton open the driver, through C that it compiles unless its cache has it. Raises `EngineError`."""
    from triton.runtime import driver

    try:
        driver.active.get_current_device()
    except Exception as error:  # the compiler is a process, its headers are files, the driver is a library
        raise EngineError(
            f"device='cuda': Triton cannot launch kernels: {type(error).__name__}: {first_line(error)}; it needs a C "
            "compiler (gcc, or what CC names), Python's headers (Debian: python3-dev) and the driver's libcuda.so.1; "
            "device='cpu' runs here"
        ) from error


def choose(device: str, found: Callable[[], Findings] = look) -> str:
    """The kind of device, cpu or cuda, for the option `device`: "auto" is cuda where it can be used. Raises
    `EngineError` for "cuda" where it cannot."""
    if device == "cpu":
        return "cpu"
    reason = unusable(found())
    if device == "cuda" and reason:
        raise EngineError(f"device='cuda': {reason}; device='cpu' runs here")
    return "cpu" if reason else "cuda"


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that. torch's allocator says so by type; the driver (which keeps graphs and modules),
    cuBLAS and Triton only in words."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in ("out of memory", "ALLOC_FAILED"))


def exhausted(device: Device, doing: str, error: Exception, smaller: str) -> EngineError:
    """The typed error for a device that ran out of memory while `doing` something; `smaller`: what would help."""
    return EngineError(
        f"{device.name} is out of memory in {doing} ({size(device.free())} are free now): ask for a smaller {smaller}; "
        f"{first_line(error)}"
    )


def first_line(error: Exception) -> str:
    """What an error says; torch's advice to developers comes behind that."""
    return str(error).partition("\n")[0].strip()
