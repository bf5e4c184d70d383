"""Arrays in 8 bits: blocks of 64 elements, each with a scale.

For the moments of an optimizer (Dettmers et al., "8-bit Optimizers via Block-wise
Quantization", ICLR 2022). A second moment is kept as its square root, which halves its
range in decades (FlashOptim, arXiv 2602.23349). Its codes are at least 1: a second
moment that is rounded to 0 would divide a first moment by epsilon.

Blocks are counted from the first element of the flattened array: 64 codes of a byte
and a float32 scale, 1.0625 bytes an element.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import mlx.core as mx

from ..layout.state_blocks import BLOCK as BLOCK
from .types import Array, Dtype

BYTES_PER_ELEMENT = 1 + 4 / BLOCK
# "signed": scale * code, int8. "root": (scale * code)^2, uint8, for values from 0 up.
Kind = Literal["signed", "root"]

DTYPES: dict[Kind, Dtype] = {"signed": mx.int8, "root": mx.uint8}
_LARGEST: dict[Kind, int] = {"signed": 127, "root": 255}
# A block without a larger absolute value (or root) becomes 0: its scale would have
# fewer bits than float32 has.
_SMALLEST = 1e-30


class Blocks(NamedTuple):
    """An array of B * 64 elements in 8 bits.

    Attributes:
        codes: int8 or uint8, shape (B, 64).
        scales: float32, shape (B,).
    """

    codes: Array
    scales: Array


def kind_of(codes: Array) -> Kind:
    """Return the kind of codes, by their dtype."""
    return "root" if codes.dtype == mx.uint8 else "signed"


def quantize(values: Array, kind: Kind, thresholds: Array | float = 0.5) -> Blocks:
    """Return values in 8 bits.

    Args:
        values: of any shape whose size is a multiple of 64; any floating dtype.
        thresholds: a code is rounded down where its fraction is below 1 - threshold:
            0.5 rounds to nearest. Or 64 of them, for the elements of each block.
    """
    blocks = values.reshape(-1, BLOCK).astype(mx.float32)
    if kind == "root":
        blocks = mx.sqrt(blocks)
        largest = mx.max(blocks, axis=1, keepdims=True)
    else:
        largest = mx.max(mx.abs(blocks), axis=1, keepdims=True)
    limit = _LARGEST[kind]
    is_zero = largest < _SMALLEST
    scales = mx.where(is_zero, 0.0, largest / limit)
    scaled = blocks * mx.where(is_zero, 0.0, limit / largest)
    if kind == "root":
        codes = (scaled + thresholds).astype(mx.uint8)  # cuts off the fraction
        codes = mx.maximum(codes, mx.array(1, mx.uint8))
    else:
        positive = (scaled + (thresholds + 128)).astype(mx.uint8)
        codes = (positive - mx.array(128, mx.uint8)).view(mx.int8)
    return Blocks(codes, scales.reshape(-1))


def random_thresholds(step: Array, number: int) -> Array:
    """Return 64 thresholds between 0 and 1 that depend on the step alone.

    Rounding with them is stochastic: right on average over steps, however little a
    value changes in one. It is the same on all ranks, however arrays are cut.

    Args:
        step: a whole number, which may be traced.
        number: of the array in a parameter's state, which has thresholds of its own.
    """
    key = mx.stack([step.astype(mx.uint32).reshape(()), mx.array(number, mx.uint32)])
    # Away from 0 and 1, so that the largest code can't overflow.
    return mx.random.uniform(2**-11, 1 - 2**-11, (BLOCK,), key=key)


def widen(codes: Array, scales: Array) -> Array:
    """Return the float32 values of blocks, flat."""
    values = codes.astype(mx.float32) * scales[:, None]
    if kind_of(codes) == "root":
        values = mx.square(values)
    return values.reshape(-1)


def zeros(size: int, kind: Kind) -> Blocks:
    """Return `size` zeros, a multiple of 64."""
    count = size // BLOCK
    return Blocks(mx.zeros((count, BLOCK), DTYPES[kind]), mx.zeros(count))
