"""World: means, broadcasts, comparisons, seeds and splits."""

import json
import sys
from functools import partial

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest

import mlxdist
from mlxdist import MismatchError
from mlxdist.comm import Recorder
from mlxdist.world import World
from tests.support.bad_arrays import array_of_a_thread_that_ended
from tests.support.examples import Net, assert_same_bits

pytestmark = pytest.mark.mpi
FLOATS = [mx.float16, mx.bfloat16, mx.float32]


@pytest.mark.mpi(min_size=2)
def test_mean_and_broadcast_of_different_trees_raise_on_all_ranks(world):
    metrics = {"loss": 1.0} if world.rank else {"lost": 1.0}
    with pytest.raises(MismatchError, match="rank 0: lost"):
        world.mean(metrics)
    with pytest.raises(MismatchError, match="rank 0: w"):
        world.broadcast({f"{'vw'[world.rank == 0]}": mx.zeros(3)})
    with pytest.raises(MismatchError, match=r"weight float32\[2, 4\]"):
        world.broadcast(nn.Linear(3 + world.rank, 2))


def test_broadcast_of_a_tree_gives_the_shapes_and_dtypes_of_the_root(world):
    root = world.size - 1
    tree = {"text": mx.zeros(world.rank, mx.uint8), "n": mx.array([world.rank])}
    if world.rank == root:
        tree = {"text": mx.array(list(b"runs/lm"), mx.uint8), "n": mx.array(0.5)}
    wanted = {"text": mx.array(list(b"runs/lm"), mx.uint8), "n": mx.array(0.5)}
    assert_same_bits(world.broadcast(tree, root), wanted)


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
    tree = world.broadcast({"a": [local, empty], "s": local[3]}, np.int64(root))
    assert_same_bits(tree["a"][0], values)
    assert tree["a"][1].shape == (0, 2)
    assert tree["s"].item() == values[3].item()
    assert_same_bits(world.native.broadcast(local, root), values)


@pytest.mark.parametrize(
    ("wrong", "root", "problem"),
    [
        ({"a": "x"}, 0, "a is a str"),
        ({"a": 1.0}, 0, "a is a float"),
        ({"a": np.zeros(3)}, 0, "a is a ndarray"),
        ({"a": mx.zeros(3)}, -1, "root is -1; the ranks go from 0"),
        ({"a": mx.zeros(3)}, 99, "root is 99; the ranks go from 0"),
        ({"a": mx.zeros(3)}, None, "root is None; the ranks go from 0"),
    ],
)
def test_broadcast_that_is_wrong_on_one_rank_raises_on_all(wrong, root, problem, world):
    right = {"a": mx.zeros(3)}, 0
    arguments = (wrong, root) if world.rank == world.size - 1 else right
    with pytest.raises(MismatchError, match=f"rank {world.size - 1}: {problem}"):
        world.broadcast(*arguments)
    assert world.broadcast(*right)["a"].tolist() == [0.0] * 3


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("make", [dict, partial(nn.Linear, 2, 2)], ids=["tree", "nn"])
def test_broadcast_from_another_root_on_one_rank_raises_on_all(make, world):
    """Each would wait for the other, or take another model."""
    with pytest.raises(MismatchError, match="rank 0: root 1"):
        world.broadcast(make(), root=int(world.rank == 0))
    world.barrier()


@pytest.mark.mpi(min_size=2)
def test_broadcast_of_an_array_that_cannot_be_evaluated_raises_on_all_ranks(world):
    root = world.size - 1
    bad = array_of_a_thread_that_ended() if world.rank == root else mx.ones((3, 3))
    with pytest.raises(MismatchError, match=f"rank {root}: RuntimeError: There is no"):
        world.broadcast([mx.ones(2), bad], root=root)
    world.barrier()


def test_broadcast_from_a_root_that_is_one_too_high_is_refused(world):
    with pytest.raises(MismatchError, match=f"root is {world.size}; the ranks go from"):
        world.broadcast({"a": mx.zeros(3)}, root=world.size)


def test_identical_of_no_arrays_on_one_rank_raises_on_all(world):
    tree = {"a": 1.0} if world.rank == world.size - 1 else {"a": mx.ones(2)}
    with pytest.raises(MismatchError, match=f"rank {world.size - 1}: a is a float"):
        world.identical(tree)
    assert world.identical({"a": mx.ones(2)})


@pytest.mark.mpi(min_size=2)
def test_split_with_a_color_that_is_none_raises_on_all_ranks(world):
    with pytest.raises(MismatchError, match=r"rank 0: color is np.int64\(-1\)"):
        world.split(np.int64(world.rank - 1))
    with pytest.raises(MismatchError, match=r"color is 1099511627776; it must be"):
        world.split(2**40)
    assert world.split(np.int64(world.rank)).size == 1


def test_seed_gives_one_model_and_different_dropout_per_rank(world):
    world.seed(11)
    model = world.broadcast(Net())
    noise = mx.random.uniform(shape=(8,))
    mx.random.seed(11)
    assert_same_bits(model.parameters(), Net().parameters())
    every = world.control.all_gather_bytes(json.dumps(noise.tolist()).encode())
    assert len(set(every)) == world.size


def test_identical_detects_one_bit(world):
    values = np.zeros(1000, np.float32)
    assert world.identical({"w": mx.array(values)})
    if world.rank == world.size - 1:
        values.view(np.uint32)[500] ^= 1
    assert world.identical({"w": mx.array(values)}) == (world.size == 1)


def test_print_prints_on_rank_0_only(world, capfd):
    world.print("hello", world.size)
    assert capfd.readouterr().out == (f"hello {world.size}\n" if world.is_root else "")


def test_print_is_flushed_before_the_output_of_other_ranks(world, capsys, monkeypatch):
    flushed = []
    monkeypatch.setattr(sys.stdout, "flush", lambda: flushed.append(1))
    world.print("step 1")
    assert flushed == [1] * world.is_root


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


@pytest.mark.parametrize("sharded", [False, True])
def test_auto_transport_is_the_same_where_one_rank_has_an_accelerator(
    sharded, world, mpi_group, monkeypatch
):
    with monkeypatch.context() as patch:
        if world.rank == 0:
            patch.setattr(mx, "default_device", lambda: mx.gpu)
        mixed = World(mpi_group, "mpi", world.duplicate(), Recorder())
    assert mixed.transport("auto", sharded=sharded) is mixed.host_transport
    assert mixed.host_transport.overlaps
    assert mixed.mean(1.0) == 1.0
