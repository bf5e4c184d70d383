"""The loop of the quick start, through the ends of epochs of any length."""

import warnings

import mlx.core as mx
import mlx.optimizers as optim
import pytest
from mlx import nn

import mlxdist

pytestmark = pytest.mark.mpi


def cross_entropy(model, x, y):
    return nn.losses.cross_entropy(model(x), y, reduction="mean")


def train(world, n, epochs=2, *, weighted=True):
    """Train a classifier with convolutions; return its model and its losses."""
    x = mx.random.normal((n, 4, 2), key=mx.random.key(1))
    y = mx.arange(n) % 3
    mx.random.seed(2)
    model = nn.Sequential(
        nn.Conv1d(2, 3, 3), nn.relu, lambda x: x.reshape(-1, 6), nn.Linear(6, 3)
    )
    optimizer = mlxdist.DistributedOptimizer(optim.SGD(0.1), shard=True)
    optimizer.init(model)
    loss_and_grad = nn.value_and_grad(model, cross_entropy)
    losses = []
    sampler = mlxdist.ShardedSampler(n, world=world, batch_size=2)
    for _ in range(epochs):
        for batch in sampler:
            loss, grads = loss_and_grad(model, x[batch], y[batch])
            weight = len(batch) if weighted else None
            optimizer.update(model, grads, weight=weight)
            losses.append(world.mean(loss.item(), weight=weight))
    return model, losses


@pytest.mark.parametrize("rest", [0, 1, 2, 3])
def test_loop_of_any_number_of_examples_has_a_loss_for_each_batch(rest, world):
    """MLX raises on empty arrays in convolutions and in `cross_entropy`."""
    model, losses = train(world, 4 * world.size + rest)
    assert mx.isfinite(mx.array(losses)).all()
    assert world.identical(model)


def warnings_of(world, n, *, weighted):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(world, n, epochs=1, weighted=weighted)
    return [str(w.message) for w in caught if "weight=len(batch)" in str(w.message)]


@pytest.mark.mpi(min_size=2)
def test_loop_without_a_weight_warns_on_rank_0_where_shares_are_uneven(world):
    n = 2 * world.size
    assert len(warnings_of(world, n + 1, weighted=False)) == world.is_root
    assert warnings_of(world, n + 1, weighted=True) == []
    assert warnings_of(world, 2 * n, weighted=False) == []
