"""Weights that `mx.compile` traces: summed with the first gradients, or behind them."""

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import pytest

import mlxdist

pytestmark = pytest.mark.mpi


def collectives_of(world, call):
    """Return the elements of each collective that a call starts."""
    recorder = world.native.recorder
    before = list(recorder.records)
    call()
    return [record.elements for record in recorder.records if record not in before]


@pytest.mark.parametrize(
    ("dtype", "sizes", "on_many"),
    [
        (mx.float32, [3, 4], [8]),  # the weight behind 7 gradients
        (mx.bfloat16, [3, 4], [8]),  # which are sent in float32
        (mx.float32, [7], [1, 7]),  # not copied together: the weight is sent alone
    ],
)
def test_traced_weights_give_the_weighted_mean(world, dtype, sizes, on_many):
    weights = [2.0 * (rank % 3) for rank in range(world.size)]
    if world.size == 1:
        weights = [2.0]
    tree = {str(size): mx.full((size,), float(world.rank + 1), dtype) for size in sizes}
    if not weights[world.rank]:  # a rank without examples
        tree = {name: mx.full(a.shape, mx.nan, dtype) for name, a in tree.items()}

    @mx.compile
    def mean(tree, weight):
        return mlxdist.average_gradients(tree, world=world, weight=weight)

    result = {}
    started = collectives_of(
        world, lambda: result.update(mean(tree, mx.array(weights[world.rank])))
    )
    assert started == (on_many if world.size > 1 else [])
    expected = sum(w * (rank + 1) for rank, w in enumerate(weights)) / sum(weights)
    for name, array in result.items():
        wanted = mx.full(tree[name].shape, expected, dtype)
        assert mx.allclose(array, wanted, rtol=1e-6, atol=0)


@pytest.mark.parametrize("shard", [True, False])
def test_compiled_step_returns_the_total_weight(world, shard):
    model = nn.Linear(3, 2)
    optimizer = mlxdist.DistributedOptimizer(
        optim.SGD(0.1), shard=shard, transport="native", world=world
    )
    optimizer.init(model)
    state = [model.state, optimizer.state]

    def update(gradients, weight):
        optimizer.update(model, gradients, weight=weight)
        return optimizer.total_weight

    step = mx.compile(update, inputs=state, outputs=state)
    gradients = model.trainable_parameters()
    total = step(gradients, mx.array(world.rank + 1))
    mx.eval(total, state)
    assert total.item() == sum(range(1, world.size + 1))
    none = step(gradients, mx.array(0))
    mx.eval(none, state)
    assert none.item() == 0
