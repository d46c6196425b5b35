"""Triton's interpreter as the kernels' tests and dry runs need it. In: nothing. Out: products with a GPU's promise.

On a GPU a row of `tl.dot` has the same bits whatever stands in the other rows: each is the same instruction's. The
interpreter multiplies with NumPy, whose library rounds a row by its place and by how many there are, on some processors
and not on others. Rounded once from float64, the product has no order of additions left to see: of float16 it is exact.

NumPy has no bfloat16. The interpreter keeps it as 16-bit integers, and computes with these: here with their values.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from triton import knobs
from triton.language import bfloat16, float32, float64
from triton.runtime import interpreter
from triton.runtime.interpreter import TensorHandle


def make_faithful() -> None:
    """From here on, in this process, interpreted kernels compute products in float64, rounded to the accumulator's type
    before they are added to it, and bfloat16 by its values, rounded to nearest even. Nothing where kernels are
    compiled."""
    builder = interpreter.InterpreterBuilder
    if knobs.runtime.interpret and builder.create_dot.__module__ != __name__:
        builder.create_dot = _product(builder.create_dot)
        builder.binary_op = _by_values(builder.binary_op)
        builder.cast_impl = _cast(builder.cast_impl)


def _product(plain: Any) -> Any:
    def create_dot(self: Any, a: Any, b: Any, d: Any, *precision: Any) -> Any:
        if not d.dtype.scalar.is_floating():
            return plain(self, a, b, d, *precision)
        product = plain(self, _known(a), _known(b), TensorHandle(np.float64(0.0), float64), *precision)
        return TensorHandle(product.data.astype(d.data.dtype) + d.data, d.dtype.scalar)

    return create_dot


def _by_values(plain: Any) -> Any:
    def binary_op(self: Any, left: Any, right: Any, op: Any) -> Any:
        if left.dtype.scalar != bfloat16:
            return plain(self, left, right, op)
        return TensorHandle(_rounded(op(_known(left).data, _known(right).data)), bfloat16)

    return binary_op


def _cast(plain: Any) -> Any:
    def cast_impl(self: Any, source: Any, target: Any) -> Any:
        if target.scalar == bfloat16:
            return TensorHandle(_rounded(_known(source).data), bfloat16)
        return plain(self, _known(source), target)

    return cast_impl


def _known(handle: Any) -> Any:
    """`handle` in a type that NumPy has: bfloat16 is the upper half of float32."""
    if handle.dtype.scalar != bfloat16:
        return handle
    return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), float32)


def _rounded(values: NDArray[Any]) -> NDArray[np.uint16]:
    """bfloat16 nearest to `values`, ties to even; a nan stays one."""
    bits = values.astype(np.float32).view(np.uint32)
    nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), 0x7FFF, nearest).astype(np.uint16)
