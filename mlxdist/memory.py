"""MLX arrays as numpy sees them: views of the same memory, and their numbers."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from .collectives import Array

Raw = NDArray[Any]

NUMPY: dict[Any, np.dtype[Any]] = {
    mx.float32: np.dtype(np.float32),
    mx.float16: np.dtype(np.float16),
    mx.bfloat16: np.dtype(np.uint16),  # numpy has no bfloat16: its bits
    mx.float64: np.dtype(np.float64),
}


def flattened(array: Array) -> Array:
    """The array as one contiguous vector, lazy; a copy only where it has to be."""
    return mx.contiguous(array.reshape(-1))


def raw(array: Array, dtype: Any = np.uint8) -> Raw:
    """A numpy view of an array's memory, writable, after evaluating it."""
    array = flattened(array)
    mx.eval(array)
    if array.size == 0:
        return np.empty(0, dtype)
    return np.frombuffer(memoryview(array).cast("B"), dtype)


def published(bits: Raw, dtype: Any) -> Array:
    """Memory that is complete, as an MLX array; copied only where MLX has to.

    Nobody may write into it any more.
    """
    numbers = bits.view(NUMPY[dtype])
    if dtype == mx.float64:  # MLX would narrow it
        return mx.array(numbers, dtype)
    array = mx.from_dlpack(numbers)
    return array.view(dtype) if array.dtype != dtype else array


def decode(part: Raw, is_bfloat16: bool, dtype: Any) -> Raw:
    """Numbers as they travelled -> numbers in which they are added."""
    if is_bfloat16:
        wide = part.astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)
    return part.astype(dtype, copy=False)
