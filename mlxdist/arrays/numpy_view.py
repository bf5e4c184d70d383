"""MLX arrays as numpy sees them: views of the same memory, and their numbers."""

from __future__ import annotations

import io
import os
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from .types import Array

Raw = NDArray[Any]

NUMPY: dict[Any, np.dtype[Any]] = {
    mx.float32: np.dtype(np.float32),
    mx.float16: np.dtype(np.float16),
    mx.bfloat16: np.dtype(np.uint16),  # numpy has no bfloat16: its bits
    mx.float64: np.dtype(np.float64),
}


# Bytes from which on it takes longer to fill memory than to go round it.
_WORTH_IT = 3 * 2**20


def raw(array: Array, dtype: Any = np.uint8) -> Raw:
    """A numpy view of an array's memory, writable, after evaluating it."""
    mx.eval(array)
    if array.size == 0:
        return np.empty(0, dtype)
    view = memoryview(array)
    if not view.c_contiguous:
        array = mx.contiguous(array)
        mx.eval(array)
        view = memoryview(array)
    return np.frombuffer(view.cast("B"), dtype)


def raw_all(arrays: list[Array], dtype: Any) -> Raw:
    """Several arrays as one vector: a view of one, a copy of more."""
    if len(arrays) == 1:
        return raw(arrays[0], dtype)
    if not arrays:
        return np.empty(0, dtype)
    mx.eval(arrays)
    return np.concatenate([raw(array, dtype) for array in arrays])


def as_one(parts: list[Raw], dtype: Any) -> Array:
    """A new flat array of the bits of some vectors."""
    array = blank(sum(part.size for part in parts), dtype)
    if array.size:
        np.concatenate(parts, out=raw(array, parts[0].dtype))
    return array


def blank(size: int, dtype: Any) -> Array:
    """An evaluated vector with whatever was in its memory before, to be written to.

    MLX's own `empty` fills it with zeros, which costs as much as filling it with
    something. `load` makes room and leaves the rest to the file: here to one that
    leaves the room as it is.
    """
    if size * dtype.size < _WORTH_IT or dtype == mx.float64:
        with mx.stream(mx.cpu):
            array = mx.zeros(size, dtype)
    else:
        bits = np.dtype(f"u{dtype.size}")
        file: Any = _NoFile(bits, size)
        loaded: Any = mx.load(file, format="npy", stream=mx.cpu)
        array = loaded.view(dtype)
    mx.eval(array)
    return array


class _NoFile:
    """A file in numpy's format of which only the header can be read."""

    closed = False

    def __init__(self, dtype: np.dtype[Any], size: int):
        file = io.BytesIO()
        told = {"descr": dtype.str, "fortran_order": False, "shape": (size,)}
        np.lib.format.write_array_header_1_0(file, told)
        self._header = file.getvalue()
        self._place = 0

    def readinto(self, room: Any) -> int:
        part = self._header[self._place : self._place + len(room)]
        room[: len(part)] = part
        self._place += len(room)
        return len(room)

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        self._place = place + (self._place if whence == os.SEEK_CUR else 0)
        return self._place

    def tell(self) -> int:
        return self._place

    def read(self, size: int) -> bytes:
        raise NotImplementedError("MLX asks for what it reads with readinto")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


def decode(part: Raw, is_bfloat16: bool, dtype: Any) -> Raw:
    """Numbers as they travelled -> numbers in which they are added."""
    if is_bfloat16:
        wide = part.astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)
    return part.astype(dtype, copy=False)


def encode(numbers: Raw, dtype: Any, *, out: Raw) -> None:
    """Numbers, rounded to an MLX dtype as MLX rounds them, into `out` as their bits.

    What is not a number may become another thing that is not finite.
    """
    if dtype != mx.bfloat16:
        with np.errstate(over="ignore", invalid="ignore"):
            out.view(NUMPY[dtype])[:] = numbers
        return
    # Half of the last bit that is kept, and its evenness, carry into it.
    wide = numbers.astype(np.float32, copy=False).view(np.uint32)
    rounded = wide >> 16
    rounded &= 1
    rounded += 0x7FFF
    rounded += wide
    rounded >>= 16
    out[:] = rounded
