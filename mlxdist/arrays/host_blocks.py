"""Moments in 8 bits widened and quantized by the host: where MLX computes on a CPU.

The blocks are those of `blockwise.widen` and `blockwise.quantize`, bit for bit: roots,
products and quotients are rounded as IEEE 754 says in NumPy and in MLX, and numbers
that are not negative have the order of their bits. A step takes 0.8 of the time: NumPy
uses the vector instructions of the processor that it runs on, MLX those that each
processor has, and what is computed on the way stays in the second-level cache, where
MLX writes it to arrays of the whole size. An accelerator runs `blockwise`.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from ..layout.state_blocks import BLOCK
from .blockwise import (
    COLUMNS,
    DTYPES,
    LARGEST,
    LEAST_LIMITS,
    SMALLEST,
    Blocks,
    Kind,
    kind_of,
)
from .numpy_view import raw, uninitialized
from .types import Array, Raw

_CHUNK = 1024  # blocks at once: a few float32 vectors of so many stay in the cache
_ONES = np.ones((_CHUNK, BLOCK), np.uint8)  # np.maximum has no fast loop for a scalar
_SIGN = np.uint32(2**31)
# By row: a phase of a block, and what is added to the roots of a block that has it.
_PHASES = np.arange(256, dtype=np.uint8)[:, None] + COLUMNS
_LIMITS: dict[Kind, Raw] = {
    kind: _PHASES * np.float32(1 / 256) + np.float32(least)
    for kind, least in LEAST_LIMITS.items()
}


def widen(codes: Array, scales: Array, shape: tuple[int, ...]) -> Array:
    """Return the float32 values of blocks, evaluated."""
    kind = kind_of(codes)
    wide = uninitialized(codes.size, mx.float32)
    numbers = raw(codes, np.uint8 if kind == "root" else np.int8).reshape(-1, BLOCK)
    outputs, factors = raw(wide, np.float32).reshape(-1, BLOCK), raw(scales, np.float32)
    scratch = np.empty((_CHUNK, BLOCK), np.float32)
    with np.errstate(all="ignore"):
        for part in _parts(len(factors)):
            out = outputs[part]
            np.copyto(out, numbers[part])
            np.multiply(out, _repeated(factors[part]), out=out)
            if kind == "root":
                np.square(out, out=out)
                np.square(out, out=out)
            else:
                np.multiply(out, np.abs(out, out=scratch[: len(out)]), out=out)
    return wide.reshape(shape)


def quantize(values: Array, kind: Kind, rows: Raw) -> Blocks:
    """Return float32 values in 8 bits, evaluated.

    Args:
        rows: the blocks' share of the phases, see `blockwise.rows_at`.
    """
    count = values.size // BLOCK
    wide = raw(values, np.float32).reshape(-1, BLOCK)
    blocks = Blocks(
        uninitialized(values.size, DTYPES[kind]), uninitialized(count, mx.float32)
    )
    codes = raw(blocks.codes, np.uint8).reshape(-1, BLOCK)
    scales = raw(blocks.scales, np.float32)
    scratch = np.empty((2, _CHUNK, BLOCK), np.float32)
    with np.errstate(all="ignore"):
        for part in _parts(count):
            roots, other = scratch[:, : len(rows[part])]
            _take_roots(wide[part], kind, roots)
            scales[part], inverse = _scales(roots, LARGEST[kind])
            np.multiply(roots, _repeated(inverse), out=roots)
            if kind == "signed":
                _copy_sign(wide[part], roots, other)
            np.take(_LIMITS[kind], rows[part], axis=0, out=other, mode="clip")
            np.add(roots, other, out=roots)
            _cut_off(roots, kind, codes[part])
    return Blocks(blocks.codes.reshape(-1, BLOCK), blocks.scales)


def _parts(count: int) -> list[slice]:
    return [slice(at, min(at + _CHUNK, count)) for at in range(0, count, _CHUNK)]


def _repeated(factors: Raw) -> Raw:
    """Return a factor of each block for its elements."""
    return np.repeat(factors, BLOCK).reshape(-1, BLOCK)  # faster than to broadcast


def _take_roots(values: Raw, kind: Kind, out: Raw) -> None:
    if kind == "signed":
        np.abs(values, out=out)
    else:
        np.sqrt(values, out=out)
    np.sqrt(out, out=out)


def _scales(roots: Raw, limit: int) -> tuple[Raw, Raw]:
    """Return scales of blocks and their inverses; 0 for those that become 0."""
    bits = roots.view(np.uint32).reshape(-1)  # a nan is larger than all numbers
    starts = np.arange(0, bits.size, BLOCK)
    largest = np.maximum.reduceat(bits, starts).view(np.float32)
    scales, inverse = largest / np.float32(limit), np.float32(limit) / largest
    is_zero = largest < np.float32(SMALLEST)
    if is_zero.any():
        scales[is_zero] = inverse[is_zero] = 0
    return scales, inverse


def _copy_sign(values: Raw, roots: Raw, scratch: Raw) -> None:
    """Give roots the signs of values; takes a third of the time of np.copysign."""
    signs, bits = scratch.view(np.uint32), roots.view(np.uint32)
    np.bitwise_and(values.view(np.uint32), _SIGN, out=signs)
    np.bitwise_or(bits, signs, out=bits)


def _cut_off(limited: Raw, kind: Kind, out: Raw) -> None:
    """Write codes, without the fractions of what they are made from."""
    np.copyto(out, limited, casting="unsafe")
    if kind == "signed":
        np.bitwise_xor(out, 128, out=out)  # minus 128, as int8
    else:
        np.maximum(out, _ONES[: len(out)], out=out)
