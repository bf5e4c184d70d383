"""average_gradients: the weighted mean over the ranks, without an optimizer."""

import mlx.core as mx
import mlx.nn as nn
import pytest

import mlxdist
from mlxdist import MismatchError
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


@pytest.mark.parametrize("dtype", [mx.int32, mx.complex64])
def test_average_gradients_of_other_dtypes_is_refused(dtype, world):
    with pytest.raises(MismatchError, match="its dtype is none of"):
        mlxdist.average_gradients({"w": mx.ones(3, dtype)}, world=world)


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
