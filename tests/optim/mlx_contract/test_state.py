"""The state of a wrapped optimizer, made by `init` or by the first step."""

import mlx.core as mx
import mlx.optimizers as optim
import pytest
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from tests.support.examples import assert_same_bits, distributed, each_shard
from tests.support.mlx_contract import (
    all_true,
    branches,
    ones_around,
    small_tree,
    wrap,
)

pytestmark = pytest.mark.mpi

# The arrays that MLX's tests find at zero after `init`.
ZERO_STATE = [
    ("SGD", {"momentum": 0.9}, ("v",)),
    ("RMSprop", {}, ("v",)),
    ("Adagrad", {}, ("v",)),
    ("AdaDelta", {}, ("v", "u")),
    ("Adam", {}, ("v", "m")),
    ("AdamW", {}, ("v", "m")),
    ("Adamax", {}, ("v", "m")),
    ("Lion", {}, ("m",)),
]
each_state = pytest.mark.parametrize(
    ("name", "arguments", "keys"), ZERO_STATE, ids=[row[0] for row in ZERO_STATE]
)


def test_state_takes_whatever_a_user_puts_in(world):
    optimizer = wrap(world, "SGD", learning_rate=0.1)
    optimizer.state["hello"] = "world"
    assert optimizer.state["hello"] == "world"


@each_shard
@each_state
def test_init_makes_zeros_of_each_shape(name, arguments, keys, shard, world):
    tree = small_tree()
    optimizer = wrap(world, name, shard, learning_rate=1e-2, **arguments)
    optimizer.init(tree)
    full = optimizer.gather_state()
    for key in keys:
        assert all_true(
            lambda leaf, state, key=key: mx.array_equal(
                state[key], mx.zeros_like(leaf)
            ),
            tree,
            full,
        )


def test_init_of_muon_makes_zeros_of_each_shape(world):
    tree = {
        "first": [mx.zeros((10, 5)), mx.zeros((1,))],
        "conv": mx.zeros((4, 2, 3, 3)),
    }
    optimizer = wrap(world, "Muon", "tensors", learning_rate=1e-2, momentum=0.95)
    optimizer.init(tree)
    assert all_true(
        lambda leaf, state: mx.array_equal(state["v"], mx.zeros_like(leaf)),
        tree,
        optimizer.gather_state(),
    )


@each_shard
def test_first_step_without_init_makes_the_momentum(shard, world):
    tree = small_tree()
    optimizer = wrap(world, "SGD", shard, learning_rate=1e-2, momentum=0.9)
    optimizer.apply_gradients(ones_around(tree, world), tree)
    assert all_true(
        lambda leaf, state: mx.array_equal(state["v"], mx.ones_like(leaf)),
        tree,
        optimizer.gather_state(),
    )


@each_shard
def test_first_step_without_init_makes_the_second_moment(shard, world):
    tree, alpha = small_tree(), 0.99
    optimizer = wrap(world, "RMSprop", shard, learning_rate=1e-2, alpha=alpha)
    optimizer.apply_gradients(ones_around(tree, world), tree)
    assert all_true(
        lambda leaf, state: mx.allclose(state["v"], (1 - alpha) * mx.ones_like(leaf)),
        tree,
        optimizer.gather_state(),
    )


@each_shard
def test_flat_state_of_this_rank_put_into_a_new_optimizer_continues(shard, world):
    model = branches(world)
    optimizer = wrap(world, "Adam", shard, learning_rate=3e-4)
    optimizer.init(model.trainable_parameters())
    flat = tree_flatten(optimizer.state)

    other = wrap(world, "Adam", shard, learning_rate=3e-4)
    other.state = tree_unflatten(flat)
    grads = ones_around(model.trainable_parameters(), world)
    twin = branches(world)
    twin.update(tree_map(mx.array, model.parameters()))
    other.update(model, grads)
    optimizer.update(twin, grads)
    assert_same_bits(model.parameters(), twin.parameters())
    assert other.step.item() == 1


@each_shard
def test_saved_flat_state_continues_bit_for_bit(shard, world, tmp_path):
    tree = {"a": mx.ones((3, 5)), "b": [mx.ones(7)]}
    first = wrap(world, "AdamW", shard, learning_rate=1e-2)
    tree = first.apply_gradients(ones_around(tree, world), tree)
    path = str(tmp_path / f"{world.rank}.safetensors")
    mx.save_safetensors(path, dict(tree_flatten(first.state)))

    second = wrap(world, "AdamW", shard, learning_rate=1e-2)
    second.init(tree)
    second.state = tree_unflatten(list(mx.load(path).items()))
    grads = ones_around(tree, world)
    assert_same_bits(
        first.apply_gradients(grads, tree), second.apply_gradients(grads, tree)
    )
    assert_same_bits(first.state, second.state)


@each_shard
def test_gradients_that_init_did_not_see_are_refused(shard, world):
    tree = {"a": mx.zeros(3), "b": mx.zeros(4)}
    optimizer = distributed(world, optim.Adam(1e-2), shard=shard)
    optimizer.apply_gradients(ones_around({"a": tree["a"]}, world), tree)
    with pytest.raises(ValueError, match=r"gradient for b"):
        optimizer.apply_gradients(ones_around(tree, world), tree)
    optimizer.init(tree)
    new = optimizer.apply_gradients(ones_around(tree, world), tree)
    assert optimizer.step.item() == 2
    assert new.keys() == tree.keys()
