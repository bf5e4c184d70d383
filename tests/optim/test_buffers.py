"""sync_buffers: BatchNorm's running statistics and other arrays not trained."""

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import pytest

import mlxdist
from tests.support.bad_arrays import array_of_a_thread_that_ended
from tests.support.batch_norm import (
    BatchNormNet,
    build,
    loss_and_gradients,
    rows,
    train,
)
from tests.support.examples import (
    assert_same_bits,
    distributed,
    each_shard,
    full_like,
    largest_difference,
    mean_of,
)

pytestmark = pytest.mark.mpi


def means_of_ranks(model, world):
    """Return the running means that the first batch of each rank gives."""
    means = []
    for rank in range(world.size):
        twin = BatchNormNet()
        twin.update(model.parameters())
        twin(rows(0, rank))
        means.append(twin.norm.running_mean)
    return means


@each_shard
@pytest.mark.parametrize("mode", ["mean", "root"])
def test_buffers_in_each_mode_are_the_same_on_all_ranks(mode, shard, world):
    model, optimizer = build(world, sync_buffers=mode, shard=shard)
    assert world.identical(model)
    assert mx.all(model.norm.running_mean == 0).item()  # the root's, at first
    fixed = model.fixed.weight
    means = means_of_ranks(model, world)
    train(model, optimizer, world, range(1))
    expected = mean_of(means) if mode == "mean" else means[0]
    assert largest_difference(model.norm.running_mean, expected) < 1e-6
    assert world.identical(model)
    train(model, optimizer, world, range(1, 4))
    assert world.identical(model)
    assert model.calls.item() == 4
    assert model.calls.dtype == mx.int32
    assert model.fixed.weight is fixed  # a frozen layer is not sent


@pytest.mark.parametrize("mode", ["mean", "root"])
def test_buffers_of_a_model_that_has_none_are_synchronized_without_an_error(
    mode, world
):
    model = nn.Linear(3, 2)
    optimizer = distributed(world, optim.SGD(1.0), sync_buffers=mode)
    optimizer.init(model)
    before = mx.array(model.bias)
    gradients = full_like(model.trainable_parameters(), float(world.rank))
    optimizer.update(model, gradients)
    assert_same_bits(model.bias, before - (world.size - 1) / 2)


def test_buffers_without_a_mode_differ_and_checkpoints_have_the_roots(
    world, shared_folder
):
    """Checksums of parameters, compared at each step, do not include them."""
    model, optimizer = build(world, check_every=1)
    train(model, optimizer, world, range(3))
    assert world.identical(model.trainable_parameters())
    assert world.identical(model) == (world.size == 1)
    mlxdist.save_checkpoint(shared_folder, 3, model, optimizer)
    root = world.broadcast(model.norm.running_mean)
    other, resumed = build(world)
    mlxdist.load_checkpoint(shared_folder, other, resumed)
    assert_same_bits(other.norm.running_mean, root)
    assert world.identical(other)


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("mode", ["mean", "root"])
def test_buffers_of_a_rank_without_a_batch_are_those_of_the_others(mode, world):
    model, optimizer = build(world, sync_buffers=mode)
    if world.rank == world.size - 1:
        optimizer.update(model, full_like(model.trainable_parameters(), 0), weight=0)
    else:
        _, grads = loss_and_gradients(model, rows(0, world.rank))
        optimizer.update(model, grads, weight=8)
    assert world.identical(model)
    assert mx.any(model.norm.running_mean != 0).item()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_buffers_are_averaged_with_the_weights_of_the_gradients(accumulate, world):
    """Of micro-batches with their sum: 1, 3, 5 and so on."""
    model, optimizer = build(world, sync_buffers="mean", accumulate=accumulate)
    means = means_of_ranks(model, world)
    _, grads = loss_and_gradients(model, rows(0, world.rank))
    if accumulate == 2:
        optimizer.update(model, grads, weight=1 + world.rank)
        optimizer.update(model, grads, weight=world.rank)
    else:
        optimizer.update(model, grads, weight=1 + 2 * world.rank)
    expected = mean_of(means, [1.0 + 2 * rank for rank in range(world.size)])
    assert largest_difference(model.norm.running_mean, expected) < 1e-6
    assert world.identical(model)


class HalfCounter(nn.Module):
    """With buffers of 16 bits and of integers."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.half = mx.zeros(3, mx.float16)
        self.count = mx.zeros(3, mx.int32)
        self.freeze(keys=["half", "count"], recurse=False)


@pytest.mark.parametrize("mode", ["mean", "root"])
def test_buffers_keep_their_dtypes_and_integers_are_the_roots(mode, world):
    model = HalfCounter()
    optimizer = distributed(world, optim.SGD(1.0), sync_buffers=mode)
    optimizer.init(model)
    model.half = mx.full((3,), 2.0 * world.rank, mx.float16)
    model.count = mx.full((3,), 7 + 2 * world.rank, mx.int32)
    optimizer.update(model, full_like(model.trainable_parameters(), 0))
    mean = (world.size - 1.0) * (mode == "mean")
    assert_same_bits(model.half, mx.full((3,), mean, mx.float16))
    assert_same_bits(model.count, mx.full((3,), 7, mx.int32))


@pytest.mark.parametrize("mode", ["mean", "root"])
def test_buffers_that_one_rank_alone_replaced_are_synchronized(mode, world):
    """Also where it is not the root, and where nothing has changed since."""
    model = HalfCounter()
    optimizer = distributed(world, optim.SGD(1.0), sync_buffers=mode)
    optimizer.init(model)
    last = world.size - 1
    if world.rank == last:
        model.half = mx.full((3,), 1.5 * world.size, mx.float16)
    optimizer.update(model, full_like(model.trainable_parameters(), 0))
    is_kept = mode == "mean" or world.size == 1
    assert model.half.tolist() == [1.5 if is_kept else 0.0] * 3


def test_buffers_are_synchronized_after_the_last_micro_batch(world):
    model, optimizer = build(world, sync_buffers="mean", accumulate=2)
    train(model, optimizer, world, range(1))
    assert world.identical(model) == (world.size == 1)
    train(model, optimizer, world, range(1, 2))
    assert world.identical(model)


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("mode", ["mean", "root"])
def test_buffer_of_the_root_that_cannot_be_evaluated_raises_on_all_ranks(mode, world):
    model, optimizer = build(world, sync_buffers=mode)
    _, grads = loss_and_gradients(model, rows(0, world.rank))
    if world.is_root:
        model.norm.running_mean = array_of_a_thread_that_ended()
    with pytest.raises(mlxdist.MismatchError, match=r"rank 0: .*There is no Stream"):
        optimizer.update(model, grads)
    model.norm.running_mean = mx.zeros(6)
    train(model, optimizer, world, range(1))
    assert world.identical(model)
