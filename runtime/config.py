"""Every knob of the engine: frozen, documented, in one place.

In: arguments of `Engine(...)` or the command line. Out: a `Config` (what a person chooses) and the `Limits` that the
scheduler works under.
"""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from ramet.frontend.errors import EngineError

DTYPES = ("auto", "float32", "bfloat16", "float16", "int8", "int4")
NATIVE = ("int8", "int4")  # dtypes of weights that the native kernels of the CPU compute with
KERNELS = ("auto", "native", "torch")
WEIGHTS = ("auto", "dense", "int8", "int4", "fp8")


STEP = {"cpu": 512, "cuda": 4096}  # new tokens of a step that nobody sized: enough to compute, short enough to wait for


Policy = Literal["peak", "age", "lru-fcfs"]
POLICIES = {
    "peak": "oldest program first, as long as whoever has begun can finish; whoever has begun keeps its KV",
    "age": "oldest program first, whatever it will need",
    "lru-fcfs": "calls as they come, nothing known of programs, the least recently used KV goes",
}


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of a step and of admission; 0 tokens are what suits the device (`STEP`)."""

    batch_tokens: int = 0  # new tokens in one step, over all sequences
    chunk_tokens: int = 0  # of those, new tokens of one sequence
    policy: Policy = "peak"  # who is let in: see `POLICIES`
    lease_seconds: float = 60.0  # how long a sequence whose program is busy elsewhere keeps its KV
    overlap: bool = True  # read the results of a step while the next one is computed

    def on(self, device: str) -> Limits:
        """With the sizes that nobody chose filled in for `device`, "cpu" or "cuda"."""
        tokens = self.batch_tokens or STEP[device]
        return msgspec.structs.replace(self, batch_tokens=tokens, chunk_tokens=self.chunk_tokens or tokens)


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """What a person may choose about an engine.

    model: a name that `models.hub.resolve` knows. device: "cpu", "cuda", or "auto" (cuda where torch, driver, GPU
    and Triton allow it, else cpu). dtype: "auto", "float32", "bfloat16", or on cuda also "float16" (auto: bfloat16
    where the device computes with it, else float32; on a CPU what the file has: int4 or int8 for GGUF files of 4 or
    8 bits, else bfloat16), or on a CPU "int8" or "int4": weights in so many bits with group scales (4-bit GGUF
    blocks are kept as they are). kernels: on a CPU "native" (ours: all dtypes but float32, without torch), "torch",
    or "auto" (native where they were built and have the model). weights: "auto" (dense), "dense", or on cuda
    "int8", "int4" (linear layers in 8 or 4 bits with group scales, computed in dtype) or "fp8" (weights and
    activations). deterministic: a request has the same bits alone, batched, cached or chunked; on a CPU that holds
    always, on cuda it costs some speed. graphs: capture small steps as CUDA graphs (a CPU has none). threads: 0 is
    one per core. context: tokens of the longest sequence, 0 is the model's own. kv_tokens: KV slots, 0 is as many
    as kv_share holds. kv_share: the share for KV of the memory that is left after weights and, on cuda, workspace;
    0 is a quarter, at most 65,536 slots, on a CPU and 0.9 on cuda. max_running: sequences that decode at once.
    """

    model: str = "default"
    dtype: str = "auto"
    device: str = "auto"
    kernels: str = "auto"
    weights: str = "auto"
    deterministic: bool = False
    graphs: bool = True
    threads: int = 0
    context: int = 0
    kv_tokens: int = 0
    kv_share: float = 0.0
    max_running: int = 256
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            some = "auto, float32 or bfloat16; float16 on cuda; int8 or int4 on a CPU"
            raise EngineError(f"dtype={self.dtype!r}: choose {some}")
        _choice("device", self.device, ("auto", "cpu", "cuda"))
        _choice("kernels", self.kernels, KERNELS)
        if self.kernels == "native" and self.dtype == "float32":
            raise EngineError("dtype='float32': kernels='native' have bfloat16, int8 and int4; leave one of them out")
        if self.kernels == "torch" and self.dtype in NATIVE:
            raise EngineError(f"dtype={self.dtype!r}: is of the native kernels; leave out kernels='torch'")
        _choice("weights", self.weights, WEIGHTS)
        if self.device == "cpu":
            self.check_cpu()
        if self.device == "cuda" and self.dtype in NATIVE:
            raise EngineError(f"dtype={self.dtype!r}: is for device='cpu'; on cuda choose weights={self.dtype!r}")
        if self.deterministic and self.weights not in ("auto", "dense"):
            raise EngineError(f"deterministic=True: needs dense weights; leave out weights={self.weights!r}")
        if not (math.isfinite(self.kv_share) and 0 <= self.kv_share <= 1):
            raise EngineError(f"kv_share={self.kv_share!r}: must be between 0 and 1")
        for field, low in (("threads", 0), ("context", 0), ("kv_tokens", 0), ("max_running", 1)):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise EngineError(f"{field}={value!r}: must be an integer of at least {low}")
        for field in ("batch_tokens", "chunk_tokens"):
            value = getattr(self.limits, field)
            if value < 0:
                raise EngineError(f"limits.{field}={value!r}: must be at least 1, or 0 for what suits the device")
        _choice("limits.policy", self.limits.policy, tuple(POLICIES))
        if not (math.isfinite(self.limits.lease_seconds) and self.limits.lease_seconds >= 0):
            raise EngineError(f"limits.lease_seconds={self.limits.lease_seconds!r}: must be finite and not negative")

    def on(self, device: str) -> Config:
        """What it means on `device`, "cpu" or "cuda". Raises `EngineError` for what is not to be had there."""
        return msgspec.structs.replace(self, device=device, limits=self.limits.on(device))

    def check_cpu(self) -> None:
        """Raise `EngineError` for what needs a GPU; called when the device turns out to be the CPU."""
        if self.dtype == "float16":
            raise EngineError("dtype='float16': is for device='cuda'; choose auto, float32 or bfloat16 on a CPU")
        if self.weights not in ("auto", "dense"):
            raise EngineError(f"weights={self.weights!r}: is for device='cuda'; choose auto or dense on a CPU")


def _choice(field: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise EngineError(f"{field}={value!r}: choose {', '.join(known[:-1])} or {known[-1]}")
