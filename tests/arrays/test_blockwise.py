"""Arrays in 8 bits: what is exact, what is bounded, and what survives."""

import mlx.core as mx
import numpy as np
import pytest

from mlxdist.arrays import blockwise
from mlxdist.arrays.blockwise import (
    BLOCK,
    numbers_of_blocks,
    phases_at,
    quantize,
    widen,
)

KINDS = ("signed", "root")


def thresholds(step, blocks, number):
    return phases_at(step, blocks, number).astype(mx.float32) / 256 + 1 / 512


def _values(kind, count=40, spread=3.0):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(count, BLOCK)) * 10.0 ** rng.normal(
        -4, spread, (count, 1)
    )
    return (values if kind == "signed" else values**2).astype(np.float32)


def _roots(values, kind):
    """What is rounded: signed square roots, or fourth roots."""
    roots = np.sqrt(np.abs(values))
    return np.sqrt(roots) if kind == "root" else np.copysign(roots, values)


@pytest.mark.parametrize("kind", KINDS)
def test_quantize_errs_by_at_most_half_a_code(kind):
    values = _values(kind)
    blocks = quantize(mx.array(values), kind)
    wide = np.array(widen(*blocks)).reshape(values.shape)
    values, wide = _roots(values, kind), _roots(wide, kind)
    error = np.abs(wide - values).max(axis=1)
    codes = {"signed": 127, "root": 255}[kind]
    half = np.abs(values).max(axis=1) / codes / 2
    # The smallest code of a root is 1.
    assert (error <= half * (2.01 if kind == "root" else 1.001)).all()
    assert blocks.codes.shape == (40, BLOCK)
    assert blocks.scales.shape == (40,)


@pytest.mark.parametrize("kind", KINDS)
def test_quantize_of_what_was_widened_gives_the_same_codes(kind):
    blocks = quantize(mx.array(_values(kind)), kind)
    again = quantize(widen(*blocks), kind)
    assert mx.array_equal(again.codes, blocks.codes)
    assert mx.allclose(again.scales, blocks.scales, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_zeros_are_widened_to_zeros(kind):
    made = blockwise.zeros(128, kind)
    quantized = quantize(mx.zeros((2, 64)), kind)
    for one, other in zip(made, quantized, strict=True):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
    if kind == "signed":  # the smallest code of a root is 1
        assert mx.array_equal(quantized.codes, made.codes)
    for blocks in (made, quantized):
        assert mx.array_equal(widen(*blocks), mx.zeros(128))


def test_second_moment_in_a_block_of_others_is_never_widened_to_zero():
    values = mx.array([1.0] + [1e-30] * 62 + [0.0])
    assert (widen(*quantize(values, "root")) > 0).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("largest", [1e-44, 1e-38, 1e-31, 1e30])
def test_quantize_of_extreme_values_stays_finite_and_in_order(kind, largest):
    values = mx.arange(64) / 63 * largest
    wide = np.array(widen(*quantize(values, kind)))
    assert np.isfinite(wide).all()
    assert (np.diff(wide) >= 0).all()
    assert wide.max() <= largest * 1.001


@pytest.mark.parametrize("kind", KINDS)
def test_block_with_a_nan_is_widened_to_nan(kind):
    values = mx.ones(128)
    values[70] = mx.nan
    wide = widen(*quantize(values, kind))
    assert mx.allclose(wide[:64], mx.ones(64))
    assert mx.isnan(wide[64:]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_rounding_that_adds_nearly_one_overflows_no_code(kind):
    values = mx.array(_values(kind))
    up = quantize(values, kind, mx.full((40, BLOCK), 255, mx.uint8))
    wide, codes = np.array(widen(*up)).reshape(values.shape), np.array(up.codes)
    assert codes.max() == {"signed": 127, "root": 255}[kind]
    largest = np.abs(np.array(values)).max(axis=1)
    assert np.allclose(np.abs(wide).max(axis=1), largest, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_rounding_with_thresholds_of_steps_is_right_on_average(kind):
    values = mx.array(_values(kind, 8, 0.5)).reshape(-1)
    blocks = numbers_of_blocks([(0, values.size)])
    steps = 400
    total = mx.zeros(values.size)
    for step in range(steps):
        wide = widen(*quantize(values, kind, phases_at(mx.array(step), blocks, 0)))
        total = total + (mx.sqrt(wide) if kind == "root" else wide)
    wanted = np.array(mx.sqrt(values) if kind == "root" else values).reshape(8, 64)
    code = np.abs(wanted).max(axis=1, keepdims=True) / (255 if kind == "root" else 127)
    error = (np.array(total / steps).reshape(8, 64) - wanted) / code
    error = error[np.abs(wanted) > code]  # smaller roots are rounded up
    assert np.abs(error).max() < 4 / steps  # random ones: 5 * 0.5 / sqrt(steps)
    assert abs(error.mean()) < 0.001


def test_thresholds_of_an_element_fill_the_interval_evenly_over_steps():
    blocks = numbers_of_blocks([(0, 256)])
    rows = [np.array(thresholds(mx.array(step), blocks, 0)) for step in range(64)]
    spread = np.sort(np.stack(rows), axis=0)
    even = (np.arange(64) + 0.5).reshape(-1, 1, 1) / 64
    assert np.abs(spread - even).max() < 2.5 / 64


def test_thresholds_are_even_and_others_in_each_step_moment_block_and_place():
    blocks = numbers_of_blocks([(0, 2**16)])
    rows = [
        np.array(thresholds(mx.array(step, dtype), blocks, number))
        for step in (2**32 + 1, 2)
        for number in (0, 1)
        for dtype in (mx.uint64, mx.int64)
    ]
    for one, same in zip(rows[::2], rows[1::2], strict=True):
        assert (one == same).all()
        assert one.min() >= 1 / 512
        assert one.max() <= 511 / 512
        for axis in (0, 1):
            assert np.abs(one.mean(axis=axis) - 0.5).max() < 0.05
    for one in rows[::2]:
        same = [(one == other).mean() for other in rows[::2]]
        assert sorted(same)[:-1] == [0, 0, 0]


def test_thresholds_do_not_depend_on_how_a_tensor_is_cut():
    step = mx.array(7)
    whole = thresholds(step, numbers_of_blocks([(0, 640)]), 1)
    parts = thresholds(step, numbers_of_blocks([(128, 256), (0, 128)]), 1)
    assert mx.array_equal(parts, mx.concatenate([whole[2:4], whole[:2]]))
