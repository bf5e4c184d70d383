"""MLX arrays seen from numpy: views of their memory, and conversions of their bits."""

from __future__ import annotations

import ctypes
import io
import math
import os
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import DTypeLike

from .types import Array, Dtype, Raw

NUMPY_DTYPES: dict[Dtype, np.dtype[np.generic]] = {
    mx.float32: np.dtype(np.float32),
    mx.float16: np.dtype(np.float16),
    mx.bfloat16: np.dtype(np.uint16),  # numpy has no bfloat16: its bits
    mx.float64: np.dtype(np.float64),
}

# Elements whose squares are summed at once: they stay in the second-level cache.
BLOCK = 64 * 1024

# Above this many bytes, a copy costs more than the workaround in `uninitialized`.
_COPIED_UP_TO = 2**20

_BYTE: Any = ctypes.c_char


def raw(array: Array, dtype: DTypeLike = np.uint8) -> Raw:
    """Return a writable numpy view of an array's memory, as `dtype`. Evaluates it."""
    mx.eval(array)
    if array.size == 0:
        return np.empty(0, dtype)
    view = memoryview(array)
    if not view.c_contiguous:
        array = mx.contiguous(array, stream=mx.cpu)
        mx.eval(array)
        view = memoryview(array)
    return np.frombuffer(view.cast("B"), dtype)


def raw_all(arrays: list[Array], dtype: DTypeLike) -> Raw:
    """Return arrays end to end: a view of one array, a copy of several."""
    if len(arrays) == 1:
        return raw(arrays[0], dtype)
    if not arrays:
        return np.empty(0, dtype)
    mx.eval(arrays)
    return np.concatenate([raw(array, dtype) for array in arrays])


def address(array: Array) -> int | None:
    """Return where an array's memory begins; None where its elements lie apart.

    Evaluates it.
    """
    try:
        return ctypes.addressof(_BYTE.from_buffer(memoryview(array)))
    except (TypeError, ValueError):  # not contiguous, or empty
        return None


def adjacent(arrays: Sequence[Array]) -> Array | None:
    """Return arrays of one dtype as one flat view, where each follows the one before.

    So do the views of one vector, as long as nobody has replaced or written to one of
    them. None where they lie elsewhere. Nothing is copied. Evaluates the arrays.
    """
    mx.eval(arrays)
    following = address(arrays[0])
    for array in arrays:
        if following is None or address(array) != following:
            return None
        following += array.nbytes
    size = sum(array.size for array in arrays)
    return mx.as_strided(arrays[0], (size,), (1,), stream=mx.cpu)


def copy_bits(arrays: Sequence[Array], *, out: Raw) -> None:
    """Copy the bits of arrays, end to end, to a vector of unsigned integers."""
    mx.eval(*arrays)
    if arrays:
        np.concatenate([raw(array, out.dtype) for array in arrays], out=out)


def from_raw(parts: Sequence[Raw], dtype: Dtype) -> Array:
    """Return a new flat array of `dtype` with the bits of some vectors, end to end."""
    array = uninitialized(sum(part.size for part in parts), dtype)
    if array.size:
        np.concatenate(parts, out=raw(array, parts[0].dtype))
    return array


def from_numpy(values: Any) -> Array:
    """Return a copy of a numpy array, or number, as an MLX array.

    MLX takes over numpy's stride of an empty vector, which is 0, and so counts it as
    not contiguous. Its reductions on a CPU then read past the end of a list, and may
    never return (MLX 0.32).
    """
    array = mx.array(values)
    return array if array.size else mx.zeros(array.shape, array.dtype, stream=mx.cpu)


def uninitialized(size: int, dtype: Dtype) -> Array:
    """Return an evaluated vector with arbitrary content, for the caller to fill.

    MLX has no `empty` that skips zero-filling, which costs as much as the write that
    follows, and a hand-over to the stream's thread. A small array is a copy, which this
    thread makes. For a large one, `mx.load` allocates and leaves the filling to its
    file: `_HeaderOnlyFile` leaves the memory as it is.
    """
    if dtype.size == mx.complex64.size:  # float64 too, which numpy can't hand over
        array = mx.zeros(size, dtype, stream=mx.cpu)
    else:
        bits = NUMPY_DTYPES.get(dtype, np.dtype(f"u{dtype.size}"))
        is_small = size * dtype.size <= _COPIED_UP_TO
        array = from_numpy(np.empty(size, bits)) if is_small else _loaded(size, bits)
        if array.dtype != dtype:
            array = mx.view(array, dtype, stream=mx.cpu)
    mx.eval(array)
    return array


def _loaded(size: int, dtype: np.dtype[np.generic]) -> Array:
    """Return a vector that nothing was written to; zeros where MLX can't give one."""
    try:
        file: Any = _HeaderOnlyFile(dtype, size)
        loaded: Array = mx.load(file, format="npy", stream=mx.cpu)
    except (RuntimeError, ValueError, NotImplementedError):
        loaded = mx.array(np.zeros(size, dtype))
    return loaded


class _HeaderOnlyFile:
    """A file in numpy's format whose data reads leave the reader's buffer unchanged."""

    closed = False

    def __init__(self, dtype: np.dtype[np.generic], size: int):
        file = io.BytesIO()
        header = {"descr": dtype.str, "fortran_order": False, "shape": (size,)}
        np.lib.format.write_array_header_1_0(file, header)
        self._header = file.getvalue()
        self._position = 0

    def readinto(self, buffer: bytearray) -> int:
        part = self._header[self._position : self._position + len(buffer)]
        buffer[: len(part)] = part
        self._position += len(buffer)
        return len(buffer)

    def seek(self, position: int, whence: int = os.SEEK_SET) -> int:
        start = self._position if whence == os.SEEK_CUR else 0
        self._position = position + start
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int) -> bytes:
        raise NotImplementedError("MLX reads with readinto")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


def decode(part: Raw, is_bfloat16: bool, dtype: DTypeLike) -> Raw:
    """Return received numbers in the dtype in which they are added."""
    if is_bfloat16:
        wide = part.astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)
    return part.astype(dtype, copy=False)


def encode(numbers: Raw, dtype: Dtype, *, out: Raw) -> None:
    """Round numbers to an MLX dtype, as MLX rounds them, and write the bits to `out`.

    A nan may become another value that is not finite.
    """
    if dtype != mx.bfloat16:
        with np.errstate(over="ignore", invalid="ignore"):
            out.view(NUMPY_DTYPES[dtype])[:] = numbers
        return
    # Round to nearest even: half of the last kept bit, and its evenness, carry into it.
    wide = numbers.astype(np.float32, copy=False).view(np.uint32)
    rounded = wide >> 16
    rounded &= 1
    rounded += 0x7FFF
    rounded += wide
    rounded >>= 16
    out[:] = rounded


def sum_of_squares(numbers: Raw) -> float:
    """Return the sum of squares of a vector; inf where it is not finite."""
    total = 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, numbers.size, BLOCK):
            block = numbers[start : start + BLOCK]
            total += float(np.dot(block, block))
    return total if math.isfinite(total) else math.inf
