"""DistributedOptimizer as users of MLX know an optimizer."""

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import pytest
from mlx.utils import tree_flatten, tree_map

import mlxdist
from tests.support.examples import (
    Net,
    apply_steps,
    assert_same_bits,
    batch,
    distributed,
    each_shard,
    gradients,
    largest_difference,
    loss_and_gradients,
    parameters,
)

pytestmark = pytest.mark.mpi


def test_optimizer_is_an_mlx_optimizer(world):
    optimizer = distributed(world)
    assert isinstance(optimizer, optim.Optimizer)
    optimizer.init(parameters())
    assert optimizer.step.item() == 0
    assert {"step", "learning_rate", "embed"} <= optimizer.state.keys()
    optimizer.learning_rate = 0.25
    assert optimizer.learning_rate.item() == 0.25


def test_optimizer_around_a_distributed_one_is_refused(world):
    with pytest.raises(ValueError, match="already"):
        distributed(world, distributed(world))


@each_shard
def test_apply_gradients_without_init_initializes_as_mlx(shard, world):
    optimizer, reference = distributed(world, shard=shard), optim.AdamW(1e-2)
    tree = parameters()
    grads = gradients(tree, 0, 0)
    assert_same_bits(
        optimizer.apply_gradients(grads, tree), reference.apply_gradients(grads, tree)
    )


@each_shard
def test_apply_gradients_of_an_empty_tree_steps_the_schedule(shard, world):
    schedule = optim.SGD(lambda step: 0.5 / (1 + step))
    optimizer = distributed(world, schedule, shard=shard)
    optimizer.init(parameters())
    assert optimizer.apply_gradients({}, {}) == {}
    assert optimizer.step.item() == 1
    optimizer.apply_gradients({}, {})
    assert optimizer.learning_rate.item() == 0.25


@each_shard
def test_apply_gradients_of_dicts_in_another_order_matches_by_path(shard, world):
    names = ["a", "b", "c", "d"]
    order = names if world.rank % 2 == 0 else names[::-1]
    tree = {name: mx.full((4,), float(ord(name))) for name in order}
    optimizer = distributed(world, optim.SGD(1.0), shard=shard)
    result = optimizer.apply_gradients(dict(tree), tree)
    assert list(result) == order
    assert all(not mx.any(leaf).item() for leaf in result.values())


def test_apply_gradients_of_some_parameters_returns_those(world):
    model = Net()
    optimizer = distributed(world, shard=True)
    optimizer.init(model)
    _, grads = loss_and_gradients(model, *batch(0, 4))
    assert not optimizer.state["frozen"]
    result = optimizer.apply_gradients(grads, model)
    assert [p for p, _ in tree_flatten(result)] == [p for p, _ in tree_flatten(grads)]


def test_apply_gradients_leaves_earlier_parameters_unchanged(world):
    """Nothing is written into arrays that a user may hold."""
    tree = parameters()
    optimizer = distributed(world, shard=True)
    optimizer.init(tree)
    results = []
    for step in range(3):
        tree = apply_steps(optimizer, tree, [step], world.rank)
        mx.eval(tree)
        results.append((tree, tree_map(lambda leaf: mx.array(leaf), tree)))
        mx.eval(results)
    for result, copy in results:
        assert_same_bits(result, copy)


def test_update_without_a_model_names_apply_gradients(world):
    tree = [mx.zeros(3)]
    with pytest.raises(ValueError, match="apply_gradients"):
        distributed(world).update(tree, tree)


@each_shard
def test_update_under_adapters_leaves_quantized_weights_unchanged(shard, world):
    class Adapted(nn.Module):
        def __init__(self):
            super().__init__()
            self.base = nn.QuantizedLinear(64, 32, group_size=32, bits=4)
            self.a = mx.random.normal((64, 2))
            self.b = mx.zeros((2, 32))

        def __call__(self, x):
            return self.base(x) + (x @ self.a) @ self.b

    mx.random.seed(world.rank)
    model = Adapted()
    optimizer = distributed(world, shard=shard)
    optimizer.init(model)
    assert world.identical(model)
    packed = mx.array(model.base.weight)
    assert packed.dtype == mx.uint32
    for step in range(2):
        x = mx.random.normal((3, 64), key=mx.random.key(step))
        _, grads = nn.value_and_grad(model, lambda m, x: (m(x) ** 2).mean())(model, x)
        optimizer.update(model, grads)
    assert world.identical(model)
    assert mx.array_equal(packed, model.base.weight)
    assert mx.any(model.b != 0)


@each_shard
def test_update_of_tied_weights_trains_as_mlx(shard, world):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(5, 4)
            self.head = self.embed

        def __call__(self, x):
            return self.head.as_linear(self.embed(x))

    mx.random.seed(2)
    model, twin = Tied(), Tied()
    twin.update(model.parameters())
    optimizer, reference = distributed(world, shard=shard), optim.AdamW(1e-2)
    optimizer.init(model)
    for _ in range(3):
        for net, inner in ((model, optimizer), (twin, reference)):
            value_and_grad = nn.value_and_grad(net, lambda m, x: m(x).square().mean())
            _, grads = value_and_grad(net, mx.array([1, 2, 3]))
            inner.update(net, grads)
    assert model.head.weight is model.embed.weight
    assert largest_difference(model.parameters(), twin.parameters()) < 1e-6


# -- hyperparameters that change between steps


@each_shard
def test_learning_rate_set_between_steps_applies_from_the_next(shard, world):
    optimizer = distributed(world, optim.SGD(1.0), shard=shard)
    tree = {"w": mx.zeros(3)}
    for rate in (1.0, 0.5, mx.array(0.25)):
        optimizer.learning_rate = rate
        tree = optimizer.apply_gradients({"w": mx.ones(3)}, tree)
    assert tree["w"].tolist() == [-1.75] * 3


def train_with_changes(world, shard, change):
    """Return parameters of both optimizers, trained while `change` alters them."""
    inner, reference = optim.AdamW(1e-2), optim.AdamW(1e-2)
    optimizer = distributed(world, inner, shard=shard)
    tree = twin = parameters()
    optimizer.init(tree)
    for step in range(4):
        grads = gradients(tree, step, 0)
        tree = optimizer.apply_gradients(grads, tree)
        twin = reference.apply_gradients(grads, twin)
        change(optimizer, step)
        change(reference, step)
        change(inner, step)
    return tree, twin


def set_learning_rate(optimizer, step):
    optimizer.learning_rate = 1e-2 / (step + 2)


def set_weight_decay(optimizer, step):
    optimizer.weight_decay = 0.1 * step


@each_shard
@pytest.mark.parametrize("change", [set_learning_rate, set_weight_decay])
def test_hyperparameter_changed_in_mid_run_trains_as_mlx(change, shard, world):
    assert_same_bits(*train_with_changes(world, shard, change))


@each_shard
@pytest.mark.usefixtures("compiled_always")
def test_learning_rate_changed_in_mid_run_applies_to_compiled_updates(shard, world):
    assert_same_bits(*train_with_changes(world, shard, set_learning_rate))


@each_shard
@pytest.mark.usefixtures("compiled_always")
def test_weight_decay_changed_in_mid_run_applies_to_compiled_updates(shard, world):
    assert_same_bits(*train_with_changes(world, shard, set_weight_decay))


@pytest.mark.mpi(min_size=2)
def test_learning_rate_set_to_the_same_on_all_ranks_is_no_mismatch(world):
    optimizer = distributed(world, optim.SGD(1.0), shard=True)
    tree = {"w": mx.zeros(3)}
    optimizer.init(tree)
    optimizer.learning_rate = 0.5
    optimizer.apply_gradients({"w": mx.ones(3)}, tree)
    optimizer.learning_rate = 0.5 if world.is_root else 0.75
    with pytest.raises(mlxdist.MismatchError, match=r"learning_rate 0\.75"):
        optimizer.apply_gradients({"w": mx.ones(3)}, tree)
    assert optimizer.step.item() == 1
