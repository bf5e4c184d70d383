"""sync_buffers: BatchNorm's running statistics and other arrays not trained."""

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import pytest

import mlxdist
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


@each_shard
@pytest.mark.parametrize("mode", ["mean", "root"])
def test_buffers_in_each_mode_are_the_same_on_all_ranks(mode, shard, world):
    model, optimizer = build(world, sync_buffers=mode, shard=shard)
    assert world.identical(model)
    assert mx.all(model.norm.running_mean == 0).item()  # the root's, at first
    fixed = model.fixed.weight
    means = []
    for rank in range(world.size):
        twin = BatchNormNet()
        twin.update(model.parameters())
        twin(rows(0, rank))
        means.append(twin.norm.running_mean)
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


def test_buffers_are_synchronized_after_the_last_micro_batch(world):
    model, optimizer = build(world, sync_buffers="mean", accumulate=2)
    train(model, optimizer, world, range(1))
    assert world.identical(model) == (world.size == 1)
    train(model, optimizer, world, range(1, 2))
    assert world.identical(model)
