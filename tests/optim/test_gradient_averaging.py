"""average_gradients: the weighted mean over the ranks, without an optimizer."""

import time

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import mlxdist
from mlxdist import MismatchError
from tests.support.attempts import agreed, any_of
from tests.support.examples import gradients_of_ranks, largest_difference, parameters

pytestmark = pytest.mark.mpi


def test_average_gradients_returns_the_mean_of_mlx(world):
    tree = parameters()
    every = gradients_of_ranks(tree, 0, world.size, integers=False)
    mean = mlxdist.average_gradients(every[world.rank], world=world, bucket_size=99)
    expected = nn.average_gradients(every[world.rank], world.group)
    assert largest_difference(mean, expected) < 1e-2
    for path in ("embed", "blocks", "conv"):
        assert largest_difference(mean[path], expected[path]) < 1e-6
    assert world.identical(mean)


def test_average_gradients_of_dicts_in_another_order_matches_by_path(world):
    """`nn.average_gradients` mixes layers where insertion orders differ."""
    names = ["a", "b", "c", "d"]
    order = names if world.rank % 2 == 0 else names[::-1]
    grads = {name: mx.full((4,), float(ord(name))) for name in order}
    mean = mlxdist.average_gradients(grads, world=world)
    assert [mean[name][0].item() for name in names] == [float(ord(n)) for n in names]
    assert list(mean) == order


def test_average_gradients_of_16_bits_adds_in_float32(world):
    """A bfloat16 all-reduce rounds at every hop: 256 + 1 + 1 + 1 = 258."""
    value = 256.0 if world.rank == 0 else 1.0
    mean = mlxdist.average_gradients(
        {"w": mx.full((5,), value, mx.bfloat16)}, world=world
    )
    total = 256.0 + world.size - 1
    expected = mx.array(total / world.size).astype(mx.bfloat16)
    assert mean["w"].tolist() == [expected.item()] * 5


@pytest.mark.mpi(min_size=2)
def test_average_gradients_of_other_trees_is_refused(world):
    with pytest.raises(MismatchError, match="the ranks differ"):
        mlxdist.average_gradients({"w": mx.zeros(2 + world.rank)}, world=world)


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        (mx.ones(3, mx.int32), r"w int32\[3\] can't be averaged"),
        (mx.ones(3, mx.complex64), r"w complex64\[3\] can't be averaged"),
        (np.ones(3, np.float32), "w is a ndarray, not an mx.array"),
        (1.0, "w is a float, not an mx.array"),
        (None, "w is a NoneType, not an mx.array"),
    ],
    ids=["int32", "complex64", "numpy", "float", "none"],
)
def test_average_gradients_that_are_wrong_on_one_rank_raise_on_all(
    wrong, problem, world
):
    last, right = world.size - 1, mx.ones(3)
    with pytest.raises(MismatchError, match=f"rank {last}: {problem}"):
        mlxdist.average_gradients({"w": wrong if world.rank == last else right})
    assert mlxdist.average_gradients({"w": right})["w"].tolist() == [1.0] * 3


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"bucket_size": 0}, "bucket_size is 0; it must be 1 byte or more"),
        ({"bucket_size": 1.5}, "bucket_size is 1.5; it must be 1 byte or more"),
        ({"weight": "x"}, "its weight is 'x'"),
        ({"weight": -1.0}, "its weight is -1.0"),
    ],
    ids=str,
)
def test_average_gradients_with_a_wrong_option_on_one_rank_raises_on_all(
    options, problem, world
):
    last, right = world.size - 1, {"w": mx.ones(3)}
    with pytest.raises(MismatchError, match=f"rank {last}: {problem}"):
        mlxdist.average_gradients(right, **(options if world.rank == last else {}))
    assert mlxdist.average_gradients(right)["w"].tolist() == [1.0] * 3


@pytest.mark.mpi(min_size=2)
def test_average_gradients_in_other_buckets_on_one_rank_raises_on_all(world):
    gradients = {"a": mx.ones(200), "b": mx.ones(300)}
    with pytest.raises(MismatchError, match=r"rank 0: .*buckets: 2\n[^$]*bucket_size"):
        mlxdist.average_gradients(gradients, bucket_size=10**6 if world.rank else 4)


@pytest.mark.mpi(min_size=2)
def test_average_gradients_of_no_arrays_on_one_rank_raises_on_all(world):
    with pytest.raises(MismatchError, match="the ranks differ"):
        mlxdist.average_gradients({} if world.rank == 0 else {"w": mx.ones(3)})
    assert mlxdist.average_gradients({}) == {}


def test_average_gradients_of_float64_keeps_its_digits(world):
    value = 1 + 2.0**-40
    gradients = [mx.array(np.array([value]), mx.float64)]
    with mx.stream(mx.cpu):
        mean = mlxdist.average_gradients(gradients)[0]
    assert np.array(mean).tolist() == [value]


def test_average_gradients_evaluated_in_another_order_gives_the_same(world):
    """Two all-reduces of one size, of which each rank evaluates another one first."""
    for step in range(10):
        a = mlxdist.average_gradients({"w": mx.full((9,), 1.0 + step)}, world=world)
        b = mlxdist.average_gradients({"w": mx.full((9,), -1.0)}, world=world)
        first, second = (a, b) if world.rank % 2 else (b, a)
        mx.eval(first)
        mx.eval(second)
        assert a["w"][0].item() == 1.0 + step
        assert b["w"][0].item() == -1.0


def test_average_gradients_evaluated_on_one_rank_leaves_world_calls_working(world):
    """Pending native collectives run before those of the host transport."""
    a = mlxdist.average_gradients({"w": mx.ones(9)}, world=world)
    if world.is_root:
        mx.eval(a)
    assert world.mean(1.0) == 1.0
    assert a["w"][0].item() == 1.0


@pytest.mark.parametrize("own_group", [True, False])
def test_average_gradients_beside_collectives_of_the_user_keeps_them_apart(
    own_group, world
):
    """The package has a communicator and a thread of its own."""
    group = mx.distributed.init() if own_group else world.group
    total = mx.distributed.all_sum(mx.ones(9), group=group)
    mean = mlxdist.average_gradients({"w": mx.full((9,), 5.0)}, world=world)["w"]
    first, second = (mean, total) if world.rank % 2 else (total, mean)
    mx.eval(first)
    mx.eval(second)
    assert total[0].item() == world.size
    assert mean[0].item() == 5.0


def slow_scalar(operations, matrix):
    """Return a lazy scalar that depends on many operations, one after the other."""
    chain = matrix
    for _ in range(operations // 2):
        chain = mx.tanh(chain @ matrix)
    return chain[0, 0]


@pytest.mark.skipif(mx.default_device() != mx.cpu, reason="what is slow depends on it")
@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("compiled", [False, True])
def test_average_gradients_of_a_slow_rank_keep_no_other_rank_waiting(compiled, world):
    """MLX blocks who queues many operations, here the slow rank, until few are left."""

    def average(grads):
        return mlxdist.average_gradients(grads, world=world)

    matrix, ones = mx.full((192, 192), 0.01), mx.ones((8, 8))
    mx.eval(matrix, ones)
    durations = []
    for _ in range(5):
        started = time.perf_counter()
        mx.eval(slow_scalar(10, matrix))
        durations.append(time.perf_counter() - started)
    operations = max(40, round(10 * 0.35 / min(durations)))
    is_slow = world.rank == world.size - 1

    def no_other_rank_waits():
        grads = {"w": ones * world.rank}
        if is_slow:
            grads["w"] += 0 * slow_scalar(operations, matrix)
        world.barrier()
        started = time.perf_counter()
        mean = (mx.compile(average) if compiled else average)(grads)
        mx.eval(ones + 1)
        computed = time.perf_counter() - started
        assert mean["w"][0, 0].item() == (world.size - 1) / 2
        averaged = time.perf_counter() - started  # it has waited for the slow rank
        return agreed(is_slow or computed < averaged / 2, world)

    assert any_of(6, no_other_rank_waits)
