"""Arrays in 8 bits: blocks of 64 elements, each with a scale.

For the moments of an optimizer (Dettmers et al., "8-bit Optimizers via Block-wise
Quantization", ICLR 2022). A second moment is kept as its square root, which halves its
range in decades (FlashOptim, arXiv 2602.23349). Its codes are at least 1: a second
moment that is rounded to 0 would divide a first moment by epsilon.

Blocks are counted from the first element of the flattened array: 64 codes of a byte
and a float32 scale, 1.0625 bytes an element.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import mlx.core as mx

from ..layout.state_blocks import BLOCK as BLOCK
from .types import Array, Dtype

BYTES_PER_ELEMENT = 1 + 4 / BLOCK
# "signed": scale * code, int8. "root": (scale * code)^2, uint8, for values from 0 up.
Kind = Literal["signed", "root"]

Thresholds = Callable[[Array], Array | float]

DTYPES: dict[Kind, Dtype] = {"signed": mx.int8, "root": mx.uint8}
_LARGEST: dict[Kind, int] = {"signed": 127, "root": 255}
# A block without a larger absolute value (or root) becomes 0: its scale would have
# fewer bits than float32 has.
_SMALLEST = 1e-30
# Odd multipliers of a multiplicative hash (Knuth, "The Art of Computer Programming" 3,
# section 6.4): primes of xxHash.
_STEPS, _BITS = 2654435761, 2246822519


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


def to_nearest(scaled: Array) -> float:
    """Return the threshold that rounds all numbers to nearest."""
    return 0.5


def quantize(values: Array, kind: Kind, thresholds: Thresholds = to_nearest) -> Blocks:
    """Return values in 8 bits.

    Args:
        values: of any shape whose size is a multiple of 64; any floating dtype.
        thresholds: of numbers in units of their block's scale. A code is rounded down
            where its fraction is below 1 - threshold. From 1/512 to 511/512, so that
            the largest code can't overflow.
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
        codes = (scaled + thresholds(scaled)).astype(mx.uint8)  # cuts off the fraction
        codes = mx.maximum(codes, mx.array(1, mx.uint8))
    else:
        positive = (scaled + (thresholds(scaled) + 128)).astype(mx.uint8)
        codes = (positive - mx.array(128, mx.uint8)).view(mx.int8)
    return Blocks(codes, scales.reshape(-1))


def random_thresholds(step: Array, number: int) -> Thresholds:
    """Return thresholds that are random, for stochastic rounding.

    It is right on average over steps, however little a value changes in one: rounded
    to nearest, a long average would not change at all. A threshold is a hash of the
    number's own bits and of the step. So it is the same on all ranks, however arrays
    are cut, and another one in each step, even where a gradient is 0.

    Args:
        step: a whole number, which may be traced.
        number: of the array in a parameter's state, which has thresholds of its own.
    """
    salt = (step.astype(mx.uint32) * 4 + number) * mx.array(_STEPS, mx.uint32)

    def thresholds(scaled: Array) -> Array:
        mixed = (scaled.view(mx.uint32) ^ salt) * mx.array(_BITS, mx.uint32)
        top = (mixed >> mx.array(24, mx.uint32)).astype(mx.float32)
        return (top + 0.5) * (1 / 256)

    return thresholds


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
