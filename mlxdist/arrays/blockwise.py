"""Arrays in 8 bits: blocks of 64 elements, each with a scale.

For the moments of an optimizer (Dettmers et al., "8-bit Optimizers via Block-wise
Quantization", ICLR 2022). Adam divides one moment by the root of the other, so that
small elements of a block count as much as large ones. Codes of equal steps would round
them to nothing. So a first moment is kept as its square root, with its sign, and a
second moment as its fourth root: what is divided by is a square root, and has as many
decades as a first moment (FlashOptim, arXiv 2602.23349, compresses both ranges too).
Codes of second moments are at least 1: one that is rounded to 0 would divide a first
moment by epsilon.

Blocks are counted from the first element of the flattened array: 64 codes of a byte
and a float32 scale, 1.0625 bytes an element.

`host_blocks.py` makes the same bits where MLX computes on a CPU.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

import mlx.core as mx
import numpy as np

from ..layout.state_blocks import BLOCK as BLOCK
from . import device
from .types import Array, Dtype, Raw

BYTES_PER_ELEMENT = 1 + 4 / BLOCK
# With x = scale * code: "signed" is x |x|, int8; "root" is x^4, uint8, from 0 up.
Kind = Literal["signed", "root"]

DTYPES: dict[Kind, Dtype] = {"signed": mx.int8, "root": mx.uint8}
LARGEST: dict[Kind, int] = {"signed": 127, "root": 255}
# What is added to a root in units of its scale, at phase 0, before its fraction is cut
# off. Signed codes are cut off as unsigned numbers, 128 more.
LEAST_LIMITS: dict[Kind, float] = {"signed": 128 + 1 / 512, "root": 1 / 512}
# A block without a larger root becomes 0: its scale would have fewer bits than float32
# has.
SMALLEST = 1e-30
# In units of 2^-32: the golden ratio for a step; for a moment 0.2113, at which two
# phases are uncorrelated. For blocks and elements in them odd multipliers of a
# multiplicative hash (Knuth, "The Art of Computer Programming" 3, section 6.4), primes
# of xxHash.
_STEPS, _MOMENTS, _BLOCKS, _PLACES = 2654435769, 907633385, 2246822519, 3266489917
COLUMNS = ((np.arange(BLOCK) * _PLACES % 2**32) >> 24).astype(np.uint8)


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


def _codes(scaled: Array, phases: Array, kind: Kind) -> Array:
    """Return codes, those of signed ones + 128, in uint8."""
    limits = phases.astype(mx.float32) * (1 / 256) + LEAST_LIMITS[kind]
    codes = (scaled + limits).astype(mx.uint8)  # cuts off the fraction
    return mx.maximum(codes, mx.array(1, mx.uint8)) if kind == "root" else codes


def quantize(values: Array, kind: Kind, phases: Array | None = None) -> Blocks:
    """Return values in 8 bits.

    Args:
        values: of any shape whose size is a multiple of 64; any floating dtype.
        phases: uint8, shape (B, 64), see `phases_at`. A root in units of its block's
            scale is rounded down where its fraction is below 1 - threshold, with
            threshold = (phase + 1/2) / 256, so that the largest code can't overflow.
            None: to nearest.
    """
    blocks = values.reshape(-1, BLOCK).astype(mx.float32)
    roots = mx.sqrt(mx.abs(blocks) if kind == "signed" else mx.sqrt(blocks))
    largest = _largest(roots)
    limit = LARGEST[kind]
    is_zero = largest < SMALLEST
    scales = mx.where(is_zero, 0.0, largest / limit)
    scaled = roots * mx.where(is_zero, 0.0, limit / largest)
    if kind == "signed":
        scaled = scaled * mx.sign(blocks)  # on a CPU mx.where branches
    codes = _codes(scaled, mx.array(127.5) if phases is None else phases, kind)
    if kind == "signed":
        codes = (codes - mx.array(128, mx.uint8)).view(mx.int8)
    return Blocks(codes, scales.reshape(-1))


def _largest(blocks: Array) -> Array:
    """Return the largest number of each row: (B, 64) -> (B, 1)."""
    if device.on_cpu():  # whose kernel is vectorized along the second of three axes
        blocks = mx.max(blocks.reshape(-1, 4, BLOCK // 4), axis=1)
    return mx.max(blocks, axis=1, keepdims=True)


def numbers_of_blocks(spans: Iterable[tuple[int, int]]) -> Array:
    """Return the numbers of blocks in their tensors.

    Args:
        spans: elements [start, stop) of flattened tensors, in multiples of 64.

    Returns:
        uint32, one for each block.
    """
    blocks = [np.arange(start // BLOCK, stop // BLOCK) for start, stop in spans]
    return mx.array(np.concatenate(blocks).astype(np.uint32))


def phases_at(step: Array, blocks: Array, number: int) -> Array:
    """Return phases that change with the step, for rounding right on average.

    Rounded to nearest, a long average would not change at all where a step changes it
    by less than half a code. The phases of an element over the steps are multiples of
    the golden ratio, modulo 1: they fill the interval evenly (Weyl's low-discrepancy
    sequence), so that errors cancel in fewer steps than with random numbers. They start
    at a sum of two numbers, one for the block and one for the element's place in it,
    and do not depend on how tensors are cut.

    Args:
        step: a whole number, which may be traced.
        blocks: the numbers of the blocks in their tensor, shape (B,); see
            `numbers_of_blocks`.
        number: of the moment in a parameter's state, which has phases of its own.

    Returns:
        uint8, shape (B, 64), in units of 1/256.
    """
    shift = mx.array(24, mx.uint32)
    passed = step.astype(mx.uint32) * mx.array(_STEPS, mx.uint32)
    salt = passed + mx.array(_MOMENTS * number, mx.uint32)
    rows = (blocks * mx.array(_BLOCKS, mx.uint32) + salt) >> shift
    return rows.astype(mx.uint8)[:, None] + mx.array(COLUMNS)  # modulo 256


def rows_at(step: int, blocks: Raw, number: int) -> Raw:
    """Return the phases of blocks, to which those of places are added: uint8, (B,).

    As `phases_at` does, for the host.
    """
    salt = np.uint32((step * _STEPS + _MOMENTS * number) % 2**32)
    rows = (blocks * np.uint32(_BLOCKS) + salt) >> np.uint32(24)
    phases: Raw = rows.astype(np.uint8)
    return phases


def widen(codes: Array, scales: Array) -> Array:
    """Return the float32 values of blocks, flat."""
    values = codes.astype(mx.float32) * scales[:, None]
    if kind_of(codes) == "root":
        values = mx.square(mx.square(values))
    else:
        values = values * mx.abs(values)
    return values.reshape(-1)


def zeros(size: int, kind: Kind) -> Blocks:
    """Return `size` zeros, a multiple of 64."""
    count = size // BLOCK
    return Blocks(mx.zeros((count, BLOCK), DTYPES[kind]), mx.zeros(count))
