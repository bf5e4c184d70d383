"""Gradients of some parameters: the others, and their state, stay as they are."""

from functools import partial

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import pytest
from mlx.utils import tree_map

from mlxdist.comm.agreement import MismatchError
from tests.support.examples import (
    CLASSES,
    assert_same_bits,
    distributed,
    each_shard,
    each_transport,
    make,
    parameters,
    shard_modes,
)
from tests.support.mlx_contract import around, each_class, ones_around

pytestmark = pytest.mark.mpi

PARTS = [("embed", "half"), ("conv",), ("blocks", "brain", "scale"), ("embed", "half")]


def subset(tree, names):
    return {name: tree[name] for name in names}


def train_on_parts(optimizer, tree, world=None):
    """Step parts of a tree in turn, with gradients whose mean is 1, 2, 3, ..."""
    for step, names in enumerate(PARTS):
        part = subset(tree, names)
        mean = tree_map(
            lambda leaf, s=step: mx.full(leaf.shape, s + 1.0, leaf.dtype), part
        )
        grads = mean if world is None else around(mean, world)
        tree = {**tree, **optimizer.apply_gradients(grads, tree)}
    return tree


@pytest.mark.parametrize(
    ("name", "shard"),
    [(name, shard) for name in CLASSES for shard in shard_modes(name)],
)
def test_steps_on_parts_are_those_of_mlx(name, shard, world):
    tree = parameters(name)
    optimizer, reference = distributed(world, make(name), shard=shard), make(name)
    optimizer.init(tree)
    reference.init(tree)
    expected = train_on_parts(reference, tree)
    assert_same_bits(train_on_parts(optimizer, tree, world), expected)
    full = optimizer.gather_state()
    assert_same_bits(full, reference.state)


@each_shard
@each_transport
def test_steps_on_parts_with_compiled_kernels_are_those_of_mlx(
    shard, transport, compiled_always, world
):
    tree = {f"w{i}": mx.ones((5, 3 + i)) for i in range(4)}
    optimizer = distributed(world, optim.Adam(0.1), shard=shard, transport=transport)
    reference = optim.Adam(0.1)
    optimizer.init(tree)
    reference.init(tree)
    expected = tree
    for names in (["w0", "w1"], list(tree), ["w3"], list(tree)):
        part = subset(tree, names)
        ones = tree_map(mx.ones_like, part)
        tree = {**tree, **optimizer.apply_gradients(ones_around(part, world), tree)}
        expected = {**expected, **reference.apply_gradients(ones, expected)}
    assert_same_bits(tree, expected)


@each_shard
def test_update_of_a_part_of_a_model_leaves_the_rest(shard, world):
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    optimizer = distributed(world, optim.AdamW(0.1, weight_decay=0.1), shard=shard)
    optimizer.init(model)
    before = tree_map(mx.array, model.parameters())
    model.layers[0].freeze()  # and no init() after it
    optimizer.update(model, ones_around(model.trainable_parameters(), world))
    after = model.parameters()
    assert_same_bits(after["layers"][0], before["layers"][0])
    assert not mx.array_equal(
        after["layers"][2]["weight"], before["layers"][2]["weight"]
    )
    assert world.identical(after)
    model.unfreeze()
    optimizer.update(model, ones_around(model.trainable_parameters(), world))
    assert not mx.array_equal(
        model.layers[0].weight, before["layers"][0]["weight"]
    ).item()


@each_shard
def test_compiled_steps_on_parts_are_the_eager_ones(shard, world):
    tree = {"a": mx.ones((4, 3)), "b": mx.ones(7)}
    optimizer = distributed(world, optim.SGD(1.0, momentum=0.5), shard=shard)
    optimizer.init(tree)

    @partial(mx.compile, inputs=optimizer.state, outputs=optimizer.state)
    def step(gradients, tree):
        return optimizer.apply_gradients(gradients, tree)

    for names in (["a"], ["a", "b"], ["b"]):
        part = subset(tree, names)
        new = step(ones_around(part, world), tree)
        mx.eval(new, optimizer.state)
        tree = {**tree, **new}
    assert tree["a"].tolist() == [[1 - 1 - 1.5] * 3] * 4
    assert tree["b"].tolist() == [1 - 1 - 1.5] * 7
    assert optimizer.step.item() == 3


@each_shard
def test_parameters_left_out_keep_their_copies(shard, world):
    tree = {"a": mx.ones(6, mx.bfloat16), "b": mx.ones(7, mx.bfloat16)}
    optimizer = distributed(
        world, optim.SGD(1.0), shard=shard, master_dtype=mx.float32, ema_decay=0.5
    )
    optimizer.init(tree)
    tree = optimizer.apply_gradients(ones_around(tree, world), tree)
    before = tree_map(mx.array, optimizer.gather_state()["b"])
    optimizer.apply_gradients(ones_around({"a": tree["a"]}, world), tree)
    full = optimizer.gather_state()
    assert_same_bits(full["b"], before)
    assert full["a"]["master"].tolist() == [-1.0] * 6


@each_shard
def test_norm_of_a_part_is_that_of_its_gradients(shard, world):
    tree = {"a": mx.zeros(4), "b": mx.zeros(9)}
    optimizer = distributed(world, optim.SGD(1.0), shard=shard, max_norm=1.0)
    optimizer.init(tree)
    new = optimizer.apply_gradients(ones_around({"a": tree["a"]}, world), tree)
    assert optimizer.grad_norm.item() == 2.0
    assert new["a"].tolist() == pytest.approx([-0.5] * 4)


@each_shard
@pytest.mark.mpi(min_size=2)
def test_ranks_that_leave_out_different_parameters_are_refused(shard, world):
    tree = {"a": mx.ones(4), "b": mx.ones(5), "c": mx.ones(3)}
    optimizer = distributed(world, optim.Adam(0.1), shard=shard)
    optimizer.init(tree)
    names = ["a", "c"] if world.rank == world.size - 1 else ["a", "b"]
    with pytest.raises(MismatchError, match=r"no gradient for b .*zeros stand for"):
        optimizer.apply_gradients(ones_around(subset(tree, names), world), tree)
    assert optimizer.step.item() == 0
    optimizer.apply_gradients(ones_around(subset(tree, ["a"]), world), tree)
    assert optimizer.step.item() == 1


@each_shard
def test_micro_batches_of_parts_are_refused(shard, world):
    tree = {"a": mx.ones(4), "b": mx.ones(5)}
    optimizer = distributed(world, optim.Adam(0.1), shard=shard)
    optimizer.init(tree)
    with optimizer.no_sync():
        optimizer.apply_gradients(ones_around(tree, world), tree)
    part = ones_around({"a": tree["a"]}, world)
    with pytest.raises(MismatchError, match=r"there is no gradient for b float32\[5\]"):
        optimizer.apply_gradients(part, tree)
    optimizer.apply_gradients(part, tree)


@each_class
def test_first_step_on_a_part_makes_the_state_of_that_part(name, shard, world):
    tree = {"a": mx.ones((4, 3)), "b": mx.ones((5, 2))}
    optimizer = distributed(world, CLASSES[name](0.1), shard=shard)
    new = optimizer.apply_gradients(ones_around({"a": tree["a"]}, world), tree)
    assert new.keys() == {"a"}
    assert "b" not in optimizer.gather_state()
