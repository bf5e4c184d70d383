"""World.mean: metrics of every type, their weights, and refusals on all ranks."""

import math
from decimal import Decimal
from fractions import Fraction

import mlx.core as mx
import numpy as np
import pytest

from mlxdist import MismatchError

pytestmark = pytest.mark.mpi


@pytest.mark.parametrize(
    "as_metric",
    [
        *(bool, int, float, Fraction, Decimal, np.bool_, np.int8, np.uint64),
        *(np.float16, np.float32, np.float64, np.longdouble),
    ],
)
def test_mean_of_a_number_of_any_type_is_a_float(as_metric, world):
    mean = world.mean(as_metric(world.rank % 2))
    assert type(mean) is float
    assert mean == (world.size // 2) / world.size


@pytest.mark.parametrize("as_metric", [complex, np.complex64, np.complex128])
def test_mean_of_complex_numbers_keeps_imaginary_parts(as_metric, world):
    mean = world.mean({"z": as_metric(world.rank - 2j * world.rank)})["z"]
    middle = (world.size - 1) / 2
    assert type(mean) is complex
    assert mean == complex(middle, -2 * middle)


@pytest.mark.parametrize(
    ("dtype", "mean_dtype"),
    [
        (mx.bool_, mx.float32),
        (mx.uint8, mx.float32),
        (mx.int32, mx.float32),
        (mx.uint64, mx.float32),
        (mx.float16, mx.float32),
        (mx.bfloat16, mx.float32),
        (mx.float32, mx.float32),
        (mx.float64, mx.float64),
        (mx.complex64, mx.complex64),
    ],
    ids=str,
)
@pytest.mark.parametrize("shape", [(), (3,), (2, 0), (2, 3)])
def test_mean_of_an_mlx_array_has_its_shape_and_a_floating_dtype(
    shape, dtype, mean_dtype, world
):
    metric = mx.full(shape, world.rank % 2, stream=mx.cpu).astype(dtype, stream=mx.cpu)
    mean = world.mean([metric])[0]
    assert (mean.dtype, mean.shape) == (mean_dtype, shape)
    expected = np.full(shape, (world.size // 2) / world.size)
    np.testing.assert_allclose(np.array(mean), expected, rtol=1e-7)


@pytest.mark.parametrize("dtype", [bool, np.int16, np.float32, np.complex64, ">f8"])
@pytest.mark.parametrize("shape", [(), (3,), (0, 2), (2, 3)])
def test_mean_of_a_numpy_array_is_a_numpy_array(shape, dtype, world):
    metric = np.full(shape, world.rank % 2, dtype).T
    mean = world.mean({"a": metric})["a"]
    assert isinstance(mean, np.ndarray)
    assert mean.shape == metric.shape
    is_complex = np.issubdtype(dtype, np.complexfloating)
    assert mean.dtype == (np.complex128 if is_complex else np.float64)
    np.testing.assert_array_equal(mean, (world.size // 2) / world.size)


def test_mean_of_a_float64_array_keeps_its_digits(world):
    value = 1 + 2.0**-40
    metric = mx.array(np.array([value]), mx.float64)
    assert np.array(world.mean(metric)).tolist() == [value]


def test_mean_of_a_nested_tree_keeps_its_structure(world):
    metrics = {
        "b": [world.rank, {"c": mx.array([1.0, 2.0])}],
        "a": (np.float32(3), [[], {}]),
    }
    mean = world.mean(metrics)
    assert list(mean) == ["b", "a"]
    assert mean["b"][0] == (world.size - 1) / 2
    assert mean["b"][1]["c"].tolist() == [1.0, 2.0]
    assert mean["a"] == (3.0, [[], {}])
    assert world.mean({}) == {}


@pytest.mark.mpi(min_size=2)
def test_mean_with_weights_ignores_a_rank_of_weight_0(world):
    value = math.nan if world.rank == 0 else 10.0 * world.rank
    ranks = range(1, world.size)
    assert world.mean(value, weight=float(world.rank)) == pytest.approx(
        sum(10.0 * rank * rank for rank in ranks) / sum(ranks)
    )


def test_mean_without_any_weight_raises(world):
    with pytest.raises(MismatchError, match="every rank has weight 0"):
        world.mean(1.0, weight=0.0)


@pytest.mark.parametrize(
    "weight",
    [-1.0, math.nan, math.inf, "x", 1j, [1.0], mx.array([1.0, 2.0]), 10**400],
    ids=lambda weight: repr(weight)[:9],
)
def test_mean_with_an_invalid_weight_raises_on_all_ranks(weight, world):
    last = world.size - 1
    with pytest.raises(MismatchError, match=f"rank {last}: its weight is"):
        world.mean(1.0, weight=weight if world.rank == last else 1.0)
    assert world.mean(2.0) == 2.0


@pytest.mark.parametrize(
    "as_weight", [int, Fraction, np.float32, np.int64, np.array, mx.array]
)
def test_mean_takes_a_weight_of_any_numeric_type(as_weight, world):
    total = sum(range(1, world.size + 1))
    mean = world.mean(float(world.rank + 1), weight=as_weight(world.rank + 1))
    assert mean == pytest.approx(sum(r * r for r in range(1, world.size + 1)) / total)


def test_mean_of_large_integers_is_exact(world):
    assert world.mean({"n": 100000001})["n"] == 100000001.0


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ("x", "a is a str"),
        (None, "a is a NoneType"),
        (np.array(["x"]), "a is a ndarray of <U1"),
        (np.array([None]), "a is a ndarray of object"),
        (np.ma.array([1.0], mask=[True]), "a can't be read: its masked numbers"),
        (np.datetime64(0, "s"), "a is a datetime64"),
        (10**400, "a can't be read: int too large"),
        ({1.0}, "a is a set"),
    ],
    ids=str,
)
def test_mean_of_no_number_on_one_rank_raises_on_all(wrong, problem, world):
    last = world.size - 1
    with pytest.raises(MismatchError, match=f"rank {last}: {problem}"):
        world.mean({"a": wrong if world.rank == last else 1.0})
    assert world.mean({"a": 1.0}) == {"a": 1.0}


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize(
    "other", [1j, mx.ones(1), [1.0], {}, {"b": 1.0}], ids=["z", "v", "list", "{}", "b"]
)
def test_mean_of_other_metrics_on_one_rank_raises_on_all(other, world):
    with pytest.raises(MismatchError, match="the ranks differ"):
        world.mean(1.0 if world.rank else other)
    assert world.mean(1.0) == 1.0
