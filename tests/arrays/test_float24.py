"""Numbers of 24 bits: exact, and rounded without a bias."""

import mlx.core as mx
import numpy as np
import pytest

from mlxdist.arrays.float24 import correction, join, split

each_dtype = pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16], ids=str)
INFINITY = {mx.bfloat16: 0x7F80, mx.float16: 0x7C00}


def every_number(dtype):
    """Return all finite numbers of a 16-bit dtype: zeros, subnormals, the largest."""
    bits = np.arange(2**16, dtype=np.uint16)
    finite = bits[(bits & 0x7FFF) < INFINITY[dtype]]
    return mx.view(mx.array(finite), dtype)


def some_corrections(numbers, low):
    """Return corrections that a zero can have, and others down to `low`."""
    drawn = np.random.default_rng(3).integers(low, 128, numbers.size)
    drawn[np.array(mx.view(numbers, mx.uint16) & 0x7FFF) == 0] &= 127
    return mx.array(drawn.astype(np.int8))


def assert_same(one, other):
    bits = [mx.view(array, mx.uint16) for array in (one, other)]
    assert mx.array_equal(*bits).item()


@each_dtype
@pytest.mark.parametrize(
    "count", [None, mx.array(7, mx.uint64)], ids=["near", "random"]
)
def test_split_of_joined_numbers_returns_the_same_bits(count, dtype):
    numbers = every_number(dtype)
    for low in (-128, 0, 127):
        corrections = some_corrections(numbers, low)
        new, rest = split(join(numbers, corrections), dtype, count)
        assert_same(new, numbers)
        assert mx.array_equal(rest, corrections).item()


@each_dtype
def test_join_is_the_number_and_its_correction_of_the_last_place(dtype):
    one = mx.array([1.0, -1.0, 1.0], dtype)
    place = 2.0**-7 if dtype == mx.bfloat16 else 2.0**-10
    joined = join(one, mx.array([3, 3, -128], mx.int8)).tolist()
    assert joined == [1 + 3 * place / 256, -1 - 3 * place / 256, 1 - place / 4]


@each_dtype
def test_split_numbers_are_the_24_bits_rounded_but_for_ties(dtype):
    wide = mx.random.normal((10000,), key=mx.random.key(1)) * 3
    new, rest = split(wide, dtype)
    tie = rest == -128
    rounded = join(new, rest).astype(dtype)
    assert_same(mx.where(tie, 0, new), mx.where(tie, 0, rounded))


@each_dtype
def test_split_keeps_infinities_and_nans(dtype):
    bits = [0x7F800000, 0xFF800000, 0x7FC00000, 0xFF800001, 0x7FFFFFFF, 0x7F7FFFFF]
    wide = mx.view(mx.array(bits, mx.uint32), mx.float32)
    for count in (None, mx.array(1, mx.uint64)):
        new, rest = split(wide, dtype, count)
        back = join(new, rest).tolist()
        assert new.tolist()[:2] == back[:2] == [np.inf, -np.inf]
        assert np.isnan([new.tolist()[2:5], back[2:5]]).all()
        assert new[5].item() == np.inf


@each_dtype
def test_join_with_a_zero_that_was_put_in_its_place_is_zero(dtype):
    zeros = mx.array([0.0, -0.0], dtype)
    assert join(zeros, mx.array([-5, -5], mx.int8)).tolist() == [0.0, 0.0]


def test_join_of_float16_beyond_its_largest_number_is_what_was_split():
    wide = mx.array([65521.0, 65504.0, 70000.0])
    new, rest = split(wide, mx.float16)
    assert join(new, rest).tolist() == [65521.0, 65504.0, np.inf]


@each_dtype
@pytest.mark.parametrize("scale", [1.0, 1e-5])
def test_split_at_random_has_no_bias(scale, dtype):
    """The mean of 64 roundings is nearer than one rounding to nearest."""
    wide = mx.random.normal((4096,), key=mx.random.key(2)) * scale
    mean = mx.zeros_like(wide)
    for count in range(64):
        mean = mean + join(*split(wide, dtype, mx.array(count, mx.uint64))) / 64
    nearest = join(*split(wide, dtype)) - wide
    assert mx.mean(mx.abs(mean - wide)).item() < 0.5 * mx.mean(mx.abs(nearest)).item()
    shift = mx.mean((mean - wide) * mx.sign(wide)).item()
    assert abs(shift) < 0.1 * mx.mean(mx.abs(nearest)).item()


@each_dtype
def test_correction_of_a_rounded_number_brings_it_back(dtype):
    wide = mx.random.normal((10000,), key=mx.random.key(4))
    wide = mx.concatenate([wide, mx.array([1 + 2.0**-8, 1 + 2.0**-11, 0.0, -0.0])])
    rounded = wide.astype(dtype)
    error = mx.abs(join(rounded, correction(rounded, wide)) - wide)
    bits = 15 if dtype == mx.bfloat16 else 18
    assert mx.all(error <= mx.abs(wide) * 2.0**-bits).item()


@each_dtype
def test_correction_of_another_number_is_zero(dtype):
    wide = mx.array([1.0003, -1.0, 0.0, 1e-8])
    other = mx.array([1.02, 1.0, 0.5, -1e-8], dtype)
    assert correction(other, wide).tolist() == [0, 0, 0, 0]
