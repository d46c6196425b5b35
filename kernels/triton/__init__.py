"""GPU operations in Triton. In: `from ramet.kernels.triton import TritonOps`. Out: the implementation of `Ops` on CUDA.

The name is resolved when it is asked for: the modules that only pack arrays on the host (`work`, `plan`, `draws`) and
the ahead-of-time compiler import without the kernels, on machines without Triton. No import touches a driver.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ramet.frontend.errors import ModelError

if TYPE_CHECKING:
    from ramet.kernels.triton.ops import TritonOps

__all__ = ["TritonOps"]


def __getattr__(name: str) -> Any:
    """`TritonOps`; raises `ModelError` where Triton is not installed."""
    if name != "TritonOps":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from ramet.kernels.triton.ops import TritonOps
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "triton":
            raise
        raise ModelError(
            "device='cuda' needs Triton, which is not installed: pip install 'ramet[gpu]' (Linux, x86-64), or use "
            "device='cpu'"
        ) from error
    return TritonOps
