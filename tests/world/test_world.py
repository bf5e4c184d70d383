"""World: means, broadcasts, comparisons, seeds and splits."""

import math
from functools import partial

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
import pytest

import mlxdist
from mlxdist import MismatchError
from tests.support.examples import Net, assert_same_bits

pytestmark = pytest.mark.mpi
FLOATS = [mx.float16, mx.bfloat16, mx.float32]


def test_mean_of_numbers_and_arrays_is_over_the_ranks(world):
    metrics = {"loss": 1.0 * world.rank, "hits": world.rank, "v": mx.arange(3.0)}
    mean = world.mean(metrics)
    assert mean["loss"] == mean["hits"] == (world.size - 1) / 2
    assert isinstance(mean["hits"], float)
    assert mean["v"].tolist() == [0.0, 1.0, 2.0]
    assert world.mean(1.0) == 1.0
    assert world.mean({}) == {}


@pytest.mark.mpi(min_size=2)
def test_mean_with_weights_ignores_a_rank_of_weight_0(world):
    value = math.nan if world.rank == 0 else 10.0 * world.rank
    ranks = range(1, world.size)
    assert world.mean(value, weight=float(world.rank)) == pytest.approx(
        sum(10.0 * rank * rank for rank in ranks) / sum(ranks)
    )


def test_mean_without_any_weight_raises(world):
    with pytest.raises(ValueError, match="every rank has weight 0"):
        world.mean(1.0, weight=0.0)


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf])
def test_mean_with_an_invalid_weight_raises_on_all_ranks(weight, world):
    last = world.size - 1
    with pytest.raises(MismatchError, match=f"rank {last}: its weight is"):
        world.mean(1.0, weight=weight if world.rank == last else 1.0)
    assert world.mean(2.0) == 2.0


def test_mean_of_large_integers_is_exact(world):
    assert world.mean({"n": 100000001})["n"] == 100000001.0


def test_mean_of_a_string_raises(world):
    with pytest.raises(ValueError, match=r"World\.mean: a is a str"):
        world.mean({"a": "x"})


@pytest.mark.mpi(min_size=2)
def test_mean_and_broadcast_of_different_trees_raise_on_all_ranks(world):
    metrics = {"loss": 1.0} if world.rank else {"lost": 1.0}
    with pytest.raises(MismatchError, match=r"rank 0: lost\[\]"):
        world.mean(metrics)
    tree = {"w": mx.zeros(3 + world.rank)}
    with pytest.raises(MismatchError, match=r"w float32\[4\]"):
        world.broadcast(tree)


@pytest.mark.mpi(min_size=2)
def test_different_calls_raise_on_all_ranks(world):
    call = partial(world.mean, 1.0) if world.rank == 0 else world.barrier
    with pytest.raises(MismatchError, match=r"rank 0: World\.mean"):
        call()
    world.barrier()


@pytest.mark.parametrize(
    "dtype",
    [mx.bool_, mx.uint8, mx.int32, mx.uint32, mx.int64, *FLOATS, mx.complex64],
    ids=str,
)
def test_broadcast_keeps_the_bits_of_every_dtype(dtype, world):
    values = mx.array([0.0, -0.0, 1.0, 77.0]).astype(dtype)
    root = world.size - 1
    local = values if world.rank == root else mx.zeros_like(values)
    empty = mx.zeros((0, 2), dtype)
    tree = world.broadcast({"a": [local, empty], "s": local[3]}, root)
    assert_same_bits(tree["a"][0], values)
    assert tree["a"][1].shape == (0, 2)
    assert tree["s"].item() == values[3].item()
    assert_same_bits(world.native.broadcast(local, root), values)


def test_broadcast_from_an_unknown_root_raises(world):
    with pytest.raises(ValueError, match="the ranks go from 0"):
        world.broadcast({"a": mx.zeros(3)}, root=world.size)


def test_seed_gives_one_model_and_different_dropout_per_rank(world):
    world.seed(11)
    model = world.broadcast(Net())
    noise = mx.random.uniform(shape=(8,))
    mx.random.seed(11)
    assert_same_bits(model.parameters(), Net().parameters())
    assert world.identical({"noise": noise}) == (world.size == 1)


def test_identical_detects_one_bit(world):
    values = np.zeros(1000, np.float32)
    assert world.identical({"w": mx.array(values)})
    if world.rank == world.size - 1:
        values.view(np.uint32)[500] ^= 1
    assert world.identical({"w": mx.array(values)}) == (world.size == 1)


def test_print_prints_on_rank_0_only(world, capfd):
    world.print("hello", world.size)
    assert capfd.readouterr().out == (f"hello {world.size}\n" if world.is_root else "")


def test_split_makes_worlds_that_train(world):
    part = world.split(world.rank % 2)
    ranks = range(world.rank % 2, world.size, 2)
    assert (part.size, part.rank) == (len(ranks), world.rank // 2)
    mean = part.mean(float(world.rank))
    assert mean == np.mean(ranks)
    optimizer = mlxdist.DistributedOptimizer(optim.SGD(1.0), shard=True, world=part)
    grads = {"w": mx.full((3,), float(world.rank))}
    result = optimizer.apply_gradients(grads, {"w": mx.zeros(3)})
    assert result["w"].tolist() == [-mean] * 3
    averaged = mlxdist.average_gradients(grads, world=part)
    assert averaged["w"].tolist() == [mean] * 3
