"""A wrapped MultiOptimizer: parts of the model, also those without parameters."""

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import pytest
from mlx.utils import tree_flatten, tree_map

from tests.support.examples import (
    assert_same_bits,
    distributed,
    largest_difference,
    shard_modes,
)
from tests.support.mlx_contract import branches, matrices_and_biases, ones_around

pytestmark = pytest.mark.mpi

each_shard = pytest.mark.parametrize("shard", shard_modes("MultiOptimizer"))


def always(path, weight):
    return True


def never(path, weight):
    return False


@each_shard
def test_init_gives_each_optimizer_its_own_parameters(shard, world):
    model = branches(world)
    optimizer = distributed(world, matrices_and_biases(), shard=shard)
    optimizer.init(model.trainable_parameters())
    assert len(optimizer.state["states"]) == 2

    adam, sgd = map(tree_flatten, optimizer.gather_state()["states"])
    # Both have a step and a rate; Adam has two arrays a parameter, SGD one.
    assert (len(sgd) - 2) * 2 == len(adam) - 2
    assert not any("bias" in path for path, _ in adam)
    assert not any("weight" in path for path, _ in sgd)


@each_shard
def test_update_of_a_model_with_modules_without_parameters(shard, world):
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    world.broadcast(model)
    inner = optim.MultiOptimizer(
        [optim.Muon(learning_rate=0.01), optim.AdamW(learning_rate=0.01)],
        [lambda path, weight: weight.ndim >= 2],
    )
    optimizer = distributed(world, inner, shard=shard)
    batch = mx.full((1, 4), 1.0 + world.rank)
    _, grads = nn.value_and_grad(model, lambda m, x: m(x).sum())(model, batch)
    optimizer.update(model, grads)
    before = tree_map(mx.array, model.layers[0].parameters())
    optimizer.update(model, grads)
    assert not mx.array_equal(before["weight"], model.layers[0].weight).item()
    assert not mx.array_equal(before["bias"], model.layers[0].bias).item()
    assert world.identical(model.parameters())


@each_shard
@pytest.mark.parametrize(
    "filters",
    [(never, always), (always, always), (never, never), (always, never)],
    ids=["second", "first", "third", "first of never"],
)
def test_optimizers_without_any_parameter_step_as_in_mlx(filters, shard, world):
    def make():
        leaves = [optim.Adam(0.1), optim.SGD(0.1, momentum=0.9), optim.Lion(0.1)]
        return optim.MultiOptimizer(leaves, list(filters))

    tree = {"a": mx.ones((3, 5)), "empty": {}, "b": [mx.ones(7), {}]}
    optimizer, reference = distributed(world, make(), shard=shard), make()
    expected = tree
    for _ in range(2):
        grads = ones_around(tree, world)
        tree = optimizer.apply_gradients(grads, tree)
        ones = tree_map(mx.ones_like, expected)
        expected = reference.apply_gradients(ones, expected)
    assert largest_difference(tree, expected) == 0.0
    assert tree["empty"] == {}
    assert tree["b"][1] == {}
    for leaf, twin in zip(
        optimizer.optimizer.optimizers, reference.optimizers, strict=True
    ):
        assert leaf.step.item() == twin.step.item() == 2


@each_shard
def test_parameters_that_leave_a_part_empty_when_frozen_train_on(shard, world):
    model = branches(world)
    optimizer = distributed(world, matrices_and_biases(), shard=shard)
    optimizer.init(model)
    optimizer.update(model, ones_around(model.trainable_parameters(), world))
    model.freeze(keys=["bias"], recurse=True)
    optimizer.init(model)  # SGD has nothing to do now
    state = optimizer.gather_state()["states"][0]["l1"]["weight"]
    assert mx.any(state["m"]).item()
    before = tree_map(mx.array, model.parameters())
    optimizer.update(model, ones_around(model.trainable_parameters(), world))
    assert_same_bits(model.l1.bias, before["l1"]["bias"])
    assert not mx.array_equal(model.l1.weight, before["l1"]["weight"]).item()


@each_shard
def test_rate_of_all_parts_is_set_at_once(shard, world):
    optimizer = distributed(world, matrices_and_biases(), shard=shard)
    optimizer.learning_rate = 0.25
    tree = {"w": mx.zeros((2, 2)), "b": mx.zeros(3)}
    new = optimizer.apply_gradients(ones_around(tree, world), tree)
    assert new["b"].tolist() == [-0.25] * 3
    assert optimizer.learning_rate.item() == 0.25


@each_shard
def test_flat_state_of_all_parts_continues_bit_for_bit(shard, world):
    tree = {"w": mx.ones((4, 3)), "b": mx.ones(5)}
    first = distributed(world, matrices_and_biases(), shard=shard)
    tree = first.apply_gradients(ones_around(tree, world), tree)
    second = distributed(world, matrices_and_biases(), shard=shard)
    second.init(tree)
    second.state = first.gather_state()
    grads = ones_around(tree, world)
    assert_same_bits(
        first.apply_gradients(grads, tree), second.apply_gradients(grads, tree)
    )
