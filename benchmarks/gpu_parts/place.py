"""Where tensors live and how time is taken. In: functions that launch work. Out: milliseconds.

On a GPU: medians over CUDA events; many small launches are captured and their graph is timed, so that what Python costs
between them is left out. For the dry run: CPU tensors in Triton's interpreter, whose times mean nothing.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ramet.kernels.triton.interpreted import make_faithful

Act = Callable[[], Any]
_ROTATED = 256 << 20  # bytes of inputs that a measurement walks through: several times the second-level cache


class Place:
    """A device to measure on. `dtype` is that of weights, activations and cache."""

    def __init__(self, *, toy: bool) -> None:
        self.toy = toy
        if toy:
            make_faithful()
        self.device = torch.device("cpu" if toy else "cuda")
        self.dtype = torch.float32 if toy else torch.bfloat16
        self.name = "interpreter" if toy else torch.cuda.get_device_name()
        self._seed = 0

    def sync(self) -> None:
        """Wait for all launched work."""
        if not self.toy:
            torch.cuda.synchronize()

    def answers(self) -> bool:
        """False when an error of the device has ended its context: every later call would report it again."""
        try:
            self.sync()
        except RuntimeError:
            return False
        return True

    def random(self, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Normal numbers, others at each call."""
        self._seed += 1
        generator = torch.Generator(self.device).manual_seed(self._seed)
        made = torch.randn(shape, generator=generator, device=self.device, dtype=torch.float32)
        return made.to(dtype or self.dtype)

    def poison(self, count: int) -> None:
        """Fill memory that the next allocations are likely to get with nan, so that what nobody writes shows."""
        for size in (count, 2 * count, 4 * count):
            torch.full((size,), torch.nan, dtype=torch.float32, device=self.device)

    def copies(self, nbytes: int, *, most: int = 128) -> int:
        """Input sets of `nbytes` that a measurement must rotate through to read memory and not the cache."""
        return 1 if self.toy else max(1, min(most, -(-_ROTATED // max(nbytes, 1))))

    @torch.inference_mode()  # as the engine captures: torch's generator belongs to the graphs of both
    def median_ms(self, acts: Sequence[Act], *, repeats: int = 20, graph: bool = True) -> float:
        """Milliseconds of one of `acts`, which are alike and run in turn; median over `repeats` rounds."""
        for act in acts:  # compiles
            act()
        if self.toy:
            began = time.perf_counter()
            acts[0]()
            return 1e3 * (time.perf_counter() - began)
        run, launches = self._captured(acts) if graph else (lambda: [act() for act in acts], len(acts))
        for _ in range(2):
            run()
        event: Callable[..., torch.cuda.Event] = torch.cuda.Event
        times: list[float] = []
        for _ in range(repeats):
            start, end = (event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) / launches)
        return statistics.median(times)

    def _captured(self, acts: Sequence[Act]) -> tuple[Act, int]:
        """A graph of them, and how many of them it has: at least ten."""
        rounds = max(1, -(-10 // len(acts)))
        self.sync()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(rounds):
                for act in acts:
                    act()
        return graph.replay, rounds * len(acts)

    def wall_ms(self, act: Act, *, repeats: int) -> float:
        """Milliseconds of wall time of `act` and of the work that it launched; median."""
        times = []
        for _ in range(repeats):
            self.sync()
            began = time.perf_counter()
            act()
            self.sync()
            times.append(1e3 * (time.perf_counter() - began))
        return statistics.median(times)
