"""Blocks widened and quantized by the host: the bits of MLX's operations."""

import mlx.core as mx
import numpy as np
import pytest

from mlxdist.arrays import blockwise, host_blocks
from mlxdist.arrays.blockwise import BLOCK, numbers_of_blocks, phases_at, rows_at

KINDS = ("signed", "root")
COUNT = 2 * 1024 + 77  # blocks: more than are computed at once, and not a multiple


def _values(kind):
    """Values of many decades, with blocks of extremes, zeros and what is not finite."""
    rng = np.random.default_rng(0)
    scales = 10.0 ** rng.normal(-6, 3, (COUNT, 1))
    values = (rng.normal(size=(COUNT, BLOCK)) * scales).astype(np.float32)
    values[0], values[1200] = 0, -0.0
    values[1] = np.arange(BLOCK) * 1e-44
    values[2, 5], values[1400, 63], values[1401, 0] = np.nan, np.inf, -np.nan
    values[3, 7] = 3e38
    if kind == "root":
        values = np.abs(values)
        values[4, 9] = -1  # its root is a nan with a sign
    return mx.array(values)


@pytest.mark.parametrize("kind", KINDS)
def test_host_quantizes_and_widens_as_mlx_does(kind):
    values, blocks = _values(kind), numbers_of_blocks([(640, 640 + COUNT * BLOCK)])
    wanted = blockwise.quantize(
        values, kind, phases_at(mx.array(5, mx.uint64), blocks, 1)
    )
    made = host_blocks.quantize(values, kind, rows_at(5, np.array(blocks), 1))
    finite = mx.isfinite(wanted.scales)  # other codes are arbitrary
    assert made.codes.dtype == wanted.codes.dtype
    assert made.codes.shape == wanted.codes.shape
    codes = [mx.where(finite[:, None], each.codes, 0) for each in (made, wanted)]
    assert mx.array_equal(*codes)
    assert mx.array_equal(made.scales, wanted.scales, equal_nan=True)
    wide = host_blocks.widen(*wanted, shape=(COUNT, 2, BLOCK // 2))
    assert wide.shape == (COUNT, 2, BLOCK // 2)
    assert mx.array_equal(wide.reshape(-1), blockwise.widen(*wanted), equal_nan=True)


@pytest.mark.parametrize("kind", KINDS)
def test_host_widens_views_of_state(kind):
    values = _values(kind)[-300:]
    codes, scales = blockwise.quantize(values, kind)
    part = host_blocks.widen(codes[3:9], scales[3:9], (6 * BLOCK,))
    assert mx.array_equal(part, blockwise.widen(codes, scales)[192:576])


@pytest.mark.parametrize("kind", KINDS)
def test_host_makes_empty_blocks_of_nothing(kind):
    blocks = host_blocks.quantize(mx.zeros(0), kind, np.zeros(0, np.uint8))
    assert blocks.codes.shape == (0, BLOCK)
    assert host_blocks.widen(*blocks, shape=(0,)).shape == (0,)
