"""Arrays in 8 bits: blocks of 64 elements, each with a scale.

For the moments of an optimizer (Dettmers et al., "8-bit Optimizers via Block-wise
Quantization", ICLR 2022). A second moment is kept as its square root, which halves its
range in decades (FlashOptim, arXiv 2602.23349). Its codes that are not 0 are at least
1: a second moment that is rounded to 0 would divide a first moment by epsilon.

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
Rounding = Callable[[Array], Array]  # float32 to whole float32

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


def quantize(values: Array, kind: Kind, rounding: Rounding = mx.round) -> Blocks:
    """Return values in 8 bits, to nearest or as `rounding` does.

    Args:
        values: of any shape whose size is a multiple of 64; any floating dtype.
        rounding: may add less than 127/128 to a number, so that no code overflows.
    """
    blocks = values.reshape(-1, BLOCK).astype(mx.float32)
    if kind == "root":
        blocks = mx.sqrt(blocks)
    largest = mx.max(mx.abs(blocks), axis=1, keepdims=True)
    scales = mx.where(largest < _SMALLEST, 0.0, largest / _LARGEST[kind])
    scaled = blocks / mx.where(scales == 0, mx.inf, scales)
    codes = rounding(scaled)
    if kind == "root":
        codes = mx.maximum(codes, (scaled > 0).astype(mx.float32))
    return Blocks(codes.astype(DTYPES[kind]), scales.reshape(-1))


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
