"""World: seeds, means, broadcasts, splits, and two of everything in one program."""

import math
from functools import partial

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
import pytest

import mlxdist
from mlxdist import MismatchError
from tests.support.examples import (
    Net,
    assert_same_bits,
)

pytestmark = pytest.mark.mpi
FLOATS = [mx.float16, mx.bfloat16, mx.float32]


def test_init_again_is_the_same_world(world):
    assert mlxdist.init() is world
    with pytest.raises(ValueError, match="joins one world"):
        mlxdist.init("ring")


def test_mpi_allows_threads_and_both_see_the_same_world(world):
    from mpi4py import MPI

    assert MPI.Query_thread() == MPI.THREAD_MULTIPLE
    assert MPI.COMM_WORLD.Get_size() == world.size
    assert MPI.COMM_WORLD.Get_rank() == world.rank
    assert MPI.COMM_WORLD.Get_errhandler() == MPI.ERRORS_ARE_FATAL


def test_mean_of_numbers_and_arrays(world):
    n = world.size
    metrics = {"loss": 1.0 * world.rank, "hits": world.rank, "v": mx.arange(3.0)}
    mean = world.mean(metrics)
    assert mean["loss"] == mean["hits"] == (n - 1) / 2
    assert isinstance(mean["hits"], float)
    assert mean["v"].tolist() == [0.0, 1.0, 2.0]
    assert world.mean(1.0) == 1.0
    assert world.mean({}) == {}


def test_mean_weighs_and_leaves_out_weight_0(world):
    weight = float(world.rank)
    value = math.nan if world.rank == 0 else 10.0 * world.rank
    if world.size == 1:
        with pytest.raises(ValueError, match="every rank has weight 0"):
            world.mean(value, weight=weight)
        return
    ranks = range(1, world.size)
    assert world.mean(value, weight=weight) == pytest.approx(
        sum(10.0 * r * r for r in ranks) / sum(ranks)
    )


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf])
def test_a_weight_that_cannot_be_is_refused_everywhere(weight, world):
    own = weight if world.rank == world.size - 1 else 1.0
    with pytest.raises(MismatchError, match=f"rank {world.size - 1}: its weight is"):
        world.mean(1.0, weight=own)
    assert world.mean(2.0) == 2.0


def test_trees_that_differ_are_refused_everywhere(world):
    if world.size == 1:
        pytest.skip("one rank can't differ")
    metrics = {"loss": 1.0} if world.rank else {"lost": 1.0}
    with pytest.raises(MismatchError, match=r"rank 0: lost\[\]"):
        world.mean(metrics)
    tree = {"w": mx.zeros(3 + world.rank)}
    with pytest.raises(MismatchError, match=r"w float32\[4\]"):
        world.broadcast(tree)


def test_other_calls_are_refused_everywhere(world):
    if world.size == 1:
        pytest.skip("one rank can't differ")
    call = partial(world.mean, 1.0) if world.rank == 0 else world.barrier
    with pytest.raises(MismatchError, match=r"rank 0: World\.mean"):
        call()
    world.barrier()


@pytest.mark.parametrize(
    "dtype",
    [mx.bool_, mx.uint8, mx.int32, mx.uint32, mx.int64, *FLOATS, mx.complex64],
    ids=str,
)
def test_broadcast_keeps_bits_of_every_dtype(dtype, world):
    values = mx.array([0.0, -0.0, 1.0, 77.0]).astype(dtype)
    root = world.size - 1
    own = values if world.rank == root else mx.zeros_like(values)
    tree = world.broadcast({"a": [own, mx.zeros((0, 2), dtype)], "s": own[3]}, root)
    assert_same_bits(tree["a"][0], values)
    assert tree["a"][1].shape == (0, 2)
    assert tree["s"].item() == values[3].item()
    assert_same_bits(world.native.broadcast(own, root), values)
    with pytest.raises(ValueError, match="the ranks go from 0"):
        world.broadcast({"a": own}, root=world.size)


def test_seeds_give_one_model_and_other_dropout(world):
    world.seed(11)
    model = world.broadcast(Net())
    noise = mx.random.uniform(shape=(8,))
    mx.random.seed(11)
    alone = Net()
    assert_same_bits(model.parameters(), alone.parameters())
    if world.size > 1:
        assert not world.identical({"noise": noise})


def test_identical_sees_one_bit(world):
    values = np.zeros(1000, np.float32)
    assert world.identical({"w": mx.array(values)})
    if world.rank == world.size - 1:
        values.view(np.uint32)[500] ^= 1
    assert world.identical({"w": mx.array(values)}) == (world.size == 1)


def test_print_is_for_rank_0(world, capfd):
    world.print("hello", world.size)
    assert capfd.readouterr().out == (f"hello {world.size}\n" if world.is_root else "")


def test_split_makes_worlds_that_train(world):
    half = world.split(world.rank % 2)
    same = len(range(world.rank % 2, world.size, 2))
    assert half.size == same
    assert half.rank == world.rank // 2
    mean = half.mean(float(world.rank))
    assert mean == np.mean(range(world.rank % 2, world.size, 2))
    ours = mlxdist.DistributedOptimizer(optim.SGD(1.0), shard=True, world=half)
    grads = {"w": mx.full((3,), float(world.rank))}
    result = ours.apply_gradients(grads, {"w": mx.zeros(3)})
    assert result["w"].tolist() == [-mean] * 3
    native = mlxdist.average_gradients(grads, world=half)
    assert native["w"].tolist() == [mean] * 3


def test_large_integers_are_averaged_exactly(world):
    assert world.mean({"n": 100000001})["n"] == 100000001.0
    with pytest.raises(ValueError, match=r"World\.mean: a is a str"):
        world.mean({"a": "x"})
