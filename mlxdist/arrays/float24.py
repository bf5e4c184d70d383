"""Numbers of 24 bits: a 16-bit float and an 8-bit correction of it.

The 16-bit float is the number rounded. The correction is the rest, in units of 1/256 of
its last place. So a bfloat16 and its correction are the upper 24 bits of a float32, and
float16 gets a fraction of 18 bits. (Kalamkar et al., SC 2020, split float32 like that;
FlashOptim, arXiv 2602.23349, keeps 8 bits of the rest.) All of it is arithmetic on
bits, which is exact for subnormal numbers too, on devices that flush them as well.

A float32 is rounded to 24 bits up or down at random, so that steps smaller than half a
unit are not lost, but taken with a probability. What is random is a hash of the bits
and of a count: the same on any device, and on any number of ranks.
"""

from __future__ import annotations

import mlx.core as mx

from .types import Array, Dtype

_INFINITY32 = 0x7F800000  # without the sign, as all bits below
_INFINITY = {mx.bfloat16: 0x7F8000, mx.float16: 0x7C0000}  # of 24 bits
_NAN = {mx.bfloat16: 0x7FC000, mx.float16: 0x7E0000}
_LEAST_NORMAL16 = 1 << 18  # of float16 and a correction; below, a unit is 2**-32
_REBIAS = (127 - 15) << 23  # from the exponent of float16 to that of float32

_NEAREST = 128  # of 256 that are added before the lower bits are dropped


def split(numbers: Array, dtype: Dtype, count: Array = None) -> tuple[Array, Array]:
    """Return float32 numbers as numbers of a 16-bit dtype, and int8 corrections.

    Exact where a number has 24 bits: then `join` returns it. A nan stays one.

    Args:
        dtype: mx.bfloat16 or mx.float16.
        count: a whole number that is another one at each call, such as the step, to
            round at random. None rounds to nearest.
    """
    bits = mx.view(numbers, mx.uint32)
    added = _NEAREST if count is None else _hash(bits, count)
    rounded = _rounded(bits, added, dtype)
    corrections = (((rounded + 128) & 0xFF) - 128).astype(mx.int8)
    # Of the corrections, so that what evaluates the numbers evaluates both.
    upper = (rounded - corrections.astype(mx.int32)) >> 8
    signed = upper.astype(mx.uint32) | (bits >> 31 << 15)
    return mx.view(signed.astype(mx.uint16), dtype), corrections


def join(numbers: Array, corrections: Array) -> Array:
    """Return 16-bit numbers and their corrections as float32 numbers.

    A number that was replaced since keeps its sign, and is off by half of its last
    place at most.
    """
    bits = mx.view(numbers, mx.uint16).astype(mx.uint32)
    rest = corrections.astype(mx.int32)
    joined = mx.maximum((bits & 0x7FFF).astype(mx.int32) * 256 + rest, 0)
    sign = bits >> 15 << 31
    if numbers.dtype == mx.bfloat16:
        return mx.view((joined << 8).astype(mx.uint32) | sign, mx.float32)
    normal = mx.view((joined << 5).astype(mx.uint32) + _REBIAS | sign, mx.float32)
    small = joined.astype(mx.float32) * 2.0**-32
    small = mx.where(sign > 0, -small, small)
    finite = mx.where(joined < _LEAST_NORMAL16, small, normal)
    is_finite = joined < _INFINITY[mx.float16]
    return mx.where(is_finite, finite, numbers.astype(mx.float32))


def correction(numbers: Array, wide: Array) -> Array:
    """Return the corrections with which 16-bit numbers are nearest to float32 numbers.

    0 where the one is not the other rounded.
    """
    bits, half = mx.view(wide, mx.uint32), mx.view(numbers, mx.uint16)
    half = half.astype(mx.uint32)
    rounded = _rounded(bits, _NEAREST, numbers.dtype)
    rest = rounded - ((half & 0x7FFF) << 8).astype(mx.int32)
    belongs = (mx.abs(rest) <= 128) & (bits >> 31 == half >> 15)
    return mx.where(belongs, mx.minimum(rest, 127), 0).astype(mx.int8)


def _hash(bits: Array, count: Array) -> Array:
    """Return 8 random bits for each number, as murmur3 mixes them."""
    mixed = (bits + count.astype(mx.uint32) * 0x9E3779B1) * 0x85EBCA6B
    mixed = (mixed ^ (mixed >> 15)) * 0xC2B2AE35
    return mixed >> 24


def _rounded(bits: Array, added: Array | int, dtype: Dtype) -> Array:
    """Return float32 numbers as 24 bits without the sign, an int32.

    Args:
        added: to the lowest bits before they are dropped: 0 to 255.
    """
    absolute = bits & 0x7FFFFFFF
    if dtype == mx.bfloat16:
        rounded = (absolute + added) >> 8
    else:
        added = added >> 3  # five bits are dropped
        normal = (absolute - _REBIAS + added) >> 5
        units = mx.view(absolute, mx.float32) * 2.0**32 + added * 2.0**-5
        is_small = absolute < _REBIAS + (1 << 23)
        rounded = mx.where(is_small, units.astype(mx.uint32), normal)
        is_large = absolute >= (127 + 16) << 23
        rounded = mx.where(is_large, _INFINITY[dtype], rounded)
    is_nan = absolute > _INFINITY32
    return mx.where(is_nan, _NAN[dtype], rounded).astype(mx.int32)
