"""The CPU's `Ops` in torch and numpy: fast, and batch-invariant: a row's bits depend on that row's inputs alone.

In and out: see `ramet.kernels.ops.Ops`.
"""

from ramet.kernels.cpu.attention import attention
from ramet.kernels.cpu.dense import embedding, linear, pack, rmsnorm, rope_store, silu_mul
from ramet.kernels.cpu.plan import plan
from ramet.kernels.cpu.sampling import sample

__all__ = ["attention", "embedding", "linear", "pack", "plan", "rmsnorm", "rope_store", "sample", "silu_mul"]
