"""State stays with its parameter where dtypes mix in one model.

Buckets have one dtype each, so that parameters of several dtypes leave the order of the
model. Megatron-LM#7336 reports a state that followed the wrong order there. Every
parameter here has gradients and state that differ from those of all others.
"""

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import pytest
from mlx.utils import tree_flatten, tree_map

import mlxdist
from tests.support.examples import assert_same_bits, distributed, each_shard, to_float32
from tests.support.mlx_contract import around

pytestmark = pytest.mark.mpi

DTYPES = (mx.float32, mx.bfloat16, mx.float32, mx.float16, mx.bfloat16)
each_master = pytest.mark.parametrize("master", [None, mx.float32], ids=str)
each_bucket_size = pytest.mark.parametrize("bucket_size", [1, 64, 2**22])


def mixed():
    """Return a tree of ten layers, in turn of each dtype, two shapes and one size."""
    layers = []
    for index in range(10):
        dtype = DTYPES[index % len(DTYPES)]
        shape = (4, 3) if index % 2 else (12,)
        layers.append({"w": mx.zeros(shape, dtype), "scale": mx.zeros(1, dtype)})
    return {"layers": layers}


def numbered(tree):
    """Return a tree whose n-th leaf is n + 1 everywhere."""
    count = 0

    def number(leaf):
        nonlocal count
        count += 1
        return mx.full(leaf.shape, float(count), leaf.dtype)

    return tree_map(number, tree)


def momentum(world, shard, **options):
    return distributed(world, optim.SGD(1.0, momentum=0.5), shard=shard, **options)


def assert_velocities(state, tree, factor):
    """Assert that each leaf's velocity is the number of the leaf times a factor."""
    velocities = dict(tree_flatten(state))
    numbers = tree_flatten(to_float32(numbered(tree)))
    found = {path: velocities[f"{path}.v"].astype(mx.float32) for path, _ in numbers}
    assert_same_bits(found, {path: number * factor for path, number in numbers})


@each_shard
@each_master
@each_bucket_size
def test_state_is_that_of_its_own_parameter(bucket_size, master, shard, world):
    tree = mixed()
    optimizer = momentum(world, shard, bucket_size=bucket_size, master_dtype=master)
    tree = optimizer.apply_gradients(around(numbered(tree), world), tree)
    assert_velocities(optimizer.gather_state(), tree, 1)
    assert_same_bits(tree, tree_map(mx.negative, numbered(tree)))
    optimizer.apply_gradients(around(numbered(tree), world), tree)
    assert_velocities(optimizer.gather_state(), tree, 1.5)


@each_shard
@each_master
def test_state_is_that_of_its_own_parameter_in_plain_mlx(master, shard, world):
    tree = mixed()
    optimizer = momentum(world, shard, master_dtype=master)
    optimizer.apply_gradients(around(numbered(tree), world), tree)
    reference = optim.SGD(1.0, momentum=0.5)
    reference.state = optimizer.gather_state()  # its keys are those of MLX
    reference.apply_gradients(numbered(tree), tree)
    assert_velocities(reference.state, tree, 1.5)


class Mixed(nn.Module):
    """A model with the mixed tree."""

    def __init__(self):
        super().__init__()
        self.layers = [nn.Module() for _ in range(10)]
        for layer, leaves in zip(self.layers, mixed()["layers"], strict=True):
            for name, leaf in leaves.items():
                layer[name] = leaf


@each_shard
@each_master
def test_init_after_another_dtype_keeps_each_state(master, shard, world):
    model = Mixed()
    optimizer = momentum(world, shard, bucket_size=64, master_dtype=master)
    optimizer.init(model)
    optimizer.update(model, around(numbered(model.trainable_parameters()), world))
    # Some go to other buckets, and with "tensors" to other owners.
    for index in (0, 3, 4):
        model.layers[index].set_dtype(mx.bfloat16 if index else mx.float16)
    optimizer.init(model)
    assert_velocities(optimizer.gather_state(), model.trainable_parameters(), 1)
    optimizer.update(model, around(numbered(model.trainable_parameters()), world))
    assert_velocities(optimizer.gather_state(), model.trainable_parameters(), 1.5)


@pytest.mark.parametrize(
    ("shard", "other", "master"),
    [
        (False, "elements", mx.float32),
        ("elements", "tensors", None),
        ("elements", "elements", mx.float32),
        ("tensors", False, mx.float32),
    ],
)
def test_checkpoint_gives_each_parameter_its_own_state(
    shard, other, master, world, shared_folder
):
    model = Mixed()
    first = momentum(world, shard, bucket_size=64, master_dtype=master)
    first.init(model)
    first.update(model, around(numbered(model.trainable_parameters()), world))
    mlxdist.save_checkpoint(shared_folder, 1, model, first)

    twin = Mixed()
    second = momentum(world, other, bucket_size=2**22, master_dtype=master)
    second.init(twin)
    mlxdist.load_checkpoint(shared_folder, twin, second)
    assert_velocities(second.gather_state(), twin.trainable_parameters(), 1)
    assert_same_bits(twin.parameters(), model.parameters())
    second.update(twin, around(numbered(twin.trainable_parameters()), world))
    first.update(model, around(numbered(model.trainable_parameters()), world))
    assert_same_bits(twin.parameters(), model.parameters())
    assert_same_bits(second.gather_state(), first.gather_state())


@each_shard
def test_multi_optimizer_of_mixed_dtypes_gives_each_its_own_state(shard, world):
    tree = mixed()
    inner = optim.MultiOptimizer(
        [optim.SGD(1.0, momentum=0.5), optim.SGD(1.0, momentum=0.25)],
        [lambda path, weight: weight.ndim == 2],
    )
    optimizer = distributed(world, inner, shard="tensors" if shard else False)
    for _ in range(2):
        optimizer.apply_gradients(around(numbered(tree), world), tree)
    matrices, vectors = optimizer.gather_state()["states"]
    states = dict(tree_flatten([matrices["layers"], vectors["layers"]]))
    for path, number in tree_flatten(numbered(tree)["layers"]):
        part, factor = (0, 1.5) if number.ndim == 2 else (1, 1.25)
        state = states[f"{part}.{path}.v"].astype(mx.float32)
        assert mx.array_equal(state, number.astype(mx.float32) * factor).item(), path
