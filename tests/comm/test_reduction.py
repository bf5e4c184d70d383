"""The weighted mean: weights, order of addition, division, and squares of the mean."""

import mlx.core as mx
import numpy as np
import pytest

from mlxdist.comm.reduction import Weights, combine, weigh
from tests.support.buckets import contribution, flat_bucket
from tests.support.examples import assert_same_bits, each_transport

pytestmark = pytest.mark.mpi
NAN = float("nan")


def combined(numbers, weights):
    """Return the mean of vectors of one number each, and its sum of squares."""
    out = np.empty(2, np.float32)
    parts = [np.full(2, number, np.float32) for number in numbers]
    squares = combine(parts, Weights.known(0, weights), is_bfloat16=False, out=out)
    return out.tolist(), squares


@pytest.mark.parametrize(
    ("numbers", "weights", "mean"),
    [
        ([3.0], [1.0], 3.0),
        ([3.0], [0.5], 3.0),
        ([1.0, 4.0], [0.25, 0.25], 2.5),  # they sum below 1
        ([1.0, 2.0, 4.0], [0.25, 0.125, 0.125], 2.0),
        ([1.0, 2.0, 4.0], [0.5, 0.25, 0.25], 2.0),  # to 1
        ([1.0, 5.0], [3.0, 1.0], 2.0),  # above
        ([1.0, NAN, 3.0], [1.0, 0.0, 1.0], 2.0),
        ([NAN, 2.0], [0.0, 0.5], 2.0),
        ([1.0, 2.0, 3.0, 6.0, 8.0], [1.0] * 5, 4.0),
    ],
)
def test_combine_of_any_weights_is_the_mean_and_its_squares(numbers, weights, mean):
    assert combined(numbers, weights) == ([mean] * 2, 2 * mean**2)


@each_transport
@pytest.mark.parametrize("power", [-3, 0, 3])
def test_all_reduce_with_weights_of_any_sum_is_their_mean(power, transport, world):
    """Of integers times powers of two the sums are exact."""
    comm = world.transport(transport, sharded=True)
    weights = [2.0**power / (1 + rank % 2) for rank in range(world.size)]
    total = sum(weight * rank for rank, weight in enumerate(weights))
    mean = np.float32(total) / np.float32(sum(weights))
    local = mx.full((7,), float(world.rank))
    known = Weights.known(world.rank, weights)
    parts = contribution(comm, local, known)
    result = comm.start_all_reduce(parts, flat_bucket(world, 7), known, mx.float32)
    assert np.array(result.finish()).tolist() == [float(mean)] * 7


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=str)
@pytest.mark.parametrize("is_traced", [False, True])
def test_weigh_with_weight_0_gives_zeros_for_what_is_nan(is_traced, dtype):
    every = None if is_traced else (0.0, 1.0)
    weights = Weights(mx.array(0.0) if is_traced else 0.0, every, 1.0)
    values = mx.array([NAN, float("inf"), 2.0]).astype(dtype)
    assert_same_bits(weigh(values, weights), mx.zeros(3, dtype))


@pytest.mark.parametrize("is_traced", [False, True])
def test_weigh_multiplies_by_the_weight_in_the_dtype_of_the_array(is_traced):
    every = None if is_traced else (0.5, 1.0)
    weights = Weights(mx.array(0.5) if is_traced else 0.5, every, 1.5)
    values = mx.array([1.0, -3.0], mx.float16)
    assert_same_bits(weigh(values, weights), mx.array([0.5, -1.5], mx.float16))
