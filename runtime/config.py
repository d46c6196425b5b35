"""Every knob of the engine: frozen, documented, in one place.

In: arguments of `Engine(...)` or the command line. Out: a `Config` (what a person chooses) and the `Limits` that the
scheduler works under.
"""

from __future__ import annotations

import math

import msgspec

from ramet.frontend.errors import EngineError


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of a step and of admission."""

    batch_tokens: int = 512  # new tokens in one step, over all sequences
    chunk_tokens: int = 512  # of those, new tokens of one sequence
    lease_seconds: float = 60.0  # how long a sequence whose program is busy elsewhere keeps its KV
    overlap: bool = True  # read the results of a step while the next one is computed


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """What a person may choose about an engine.

    model: a name that `models.hub.resolve` knows. dtype: "auto", "float32" or "bfloat16" (auto: bfloat16 where the
    processor computes with it, else float32). device: "cpu". threads: 0 is one per core. context: tokens of the
    longest sequence, 0 is the model's own. kv_tokens: KV slots, 0 is as many as a quarter of the free memory holds,
    at most 65,536. max_running: sequences that decode at once.
    """

    model: str = "default"
    dtype: str = "auto"
    device: str = "cpu"
    threads: int = 0
    context: int = 0
    kv_tokens: int = 0
    max_running: int = 256
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        if self.dtype not in ("auto", "float32", "bfloat16"):
            raise EngineError(f"dtype={self.dtype!r}: choose auto, float32 or bfloat16")
        if self.device != "cpu":
            raise EngineError(f"device={self.device!r}: this version runs on cpu")
        for field, low in (("threads", 0), ("context", 0), ("kv_tokens", 0), ("max_running", 1)):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise EngineError(f"{field}={value!r}: must be an integer of at least {low}")
        for field in ("batch_tokens", "chunk_tokens"):
            value = getattr(self.limits, field)
            if value < 1:
                raise EngineError(f"limits.{field}={value!r}: must be at least 1")
        if not (math.isfinite(self.limits.lease_seconds) and self.limits.lease_seconds >= 0):
            raise EngineError(f"limits.lease_seconds={self.limits.lease_seconds!r}: must be finite and not negative")
