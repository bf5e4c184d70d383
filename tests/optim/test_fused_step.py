"""The local update as compiled kernels gives what MLX gives one operation at a time."""

import mlx.core as mx
import mlx.optimizers as optim
import pytest
from mlx.utils import tree_map

from mlxdist import NonFiniteError
from tests.support.compiled import assert_as_eager
from tests.support.examples import (
    assert_same_bits,
    distributed,
    each_shard,
)

pytestmark = [pytest.mark.mpi, pytest.mark.usefixtures("compiled_always")]
INNER = {
    "AdamW": lambda: optim.AdamW(lambda step: 1e-2 / (1 + step), weight_decay=0.1),
    "SGD": lambda: optim.SGD(1e-2, momentum=0.9),
    "Lion": lambda: optim.Lion(1e-2),
}


def integer_tree(seed, dtype=mx.float32):
    """Large tensors with buckets of their own, and small ones that share one."""
    key = mx.random.key(seed)
    sizes = {"a": (40, 50), "b": (7,), "c": (3, 5), "d": (64, 33), "e": (1,)}
    return {
        name: mx.random.randint(-8, 8, shape, key=key).astype(dtype)
        for name, shape in sizes.items()
    }


@each_shard
@pytest.mark.parametrize("name", INNER)
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=str)
def test_compiled_update_gives_the_bits_of_mlx(name, shard, dtype, world):
    optimizer, reference = distributed(world, INNER[name](), shard=shard), INNER[name]()
    tree = twin = integer_tree(0, dtype)
    optimizer.init(tree)
    reference.init(twin)
    on_cpu = mx.default_device() == mx.cpu
    assert optimizer.describe().compiled == (dtype == mx.float32 or not on_cpu)
    for step in range(1, 4):
        grads = integer_tree(step, dtype)
        tree = optimizer.apply_gradients(grads, tree)
        twin = reference.apply_gradients(grads, twin)
    assert_as_eager(tree, twin, dtype)
    assert_as_eager(optimizer.gather_state(), reference.state, dtype)


def test_compiled_update_after_load_state_uses_the_loaded_state(world):
    """The state of small tensors is kept flat, and must not be a stale copy."""
    optimizer = distributed(world, INNER["SGD"](), shard="elements")
    reference = INNER["SGD"]()
    tree = twin = integer_tree(0)
    optimizer.init(tree)
    reference.init(twin)
    for step in range(1, 5):
        grads = integer_tree(step)
        tree = optimizer.apply_gradients(grads, tree)
        twin = reference.apply_gradients(grads, twin)
        if step == 2:
            full = tree_map(lambda leaf: leaf, reference.state)
            for name in ("b", "c", "d"):
                full[name]["v"] = full[name]["v"] + 1
            optimizer.load_state(full)
            reference.state = full
    assert_as_eager(tree, twin)


@each_shard
def test_compiled_update_uses_parameters_that_were_changed_since_the_last_step(
    shard, world
):
    """In place, or replaced; those of the last step are views of one vector."""
    optimizer, reference = (
        distributed(world, INNER["SGD"](), shard=shard),
        INNER["SGD"](),
    )
    tree = twin = integer_tree(0)
    optimizer.init(tree)
    for step in range(1, 6):
        tree = optimizer.apply_gradients(integer_tree(step), tree)
        twin = reference.apply_gradients(integer_tree(step), twin)
        mx.eval(tree)
        for each in (tree, twin):
            if step == 2:
                each["c"][1, 2] = 100.0
            if step == 4:
                each["d"] = each["d"] + 1
    assert_as_eager(tree, twin)


def test_compiled_update_leaves_earlier_parameters_unchanged(world):
    optimizer = distributed(world, INNER["AdamW"](), shard=True)
    tree = integer_tree(0)
    optimizer.init(tree)
    results = []
    for step in range(1, 6):
        tree = optimizer.apply_gradients(integer_tree(step), tree)
        results.append(
            (tree, {name: mx.array(leaf) + 0 for name, leaf in tree.items()})
        )
        mx.eval(results[-1][1])
    for result, copy in results:
        assert_same_bits(result, copy)


@pytest.mark.mpi(min_size=2)
def test_compiled_update_with_a_nan_changes_nothing(world):
    """Though each bucket is updated as soon as it arrives."""
    optimizer = distributed(world, INNER["AdamW"](), shard=True)
    tree = integer_tree(0)
    optimizer.init(tree)
    grads = integer_tree(1)
    if world.rank == world.size - 1:
        grads["e"] = mx.array([float("nan")])
    state = optimizer.gather_state()
    with pytest.raises(NonFiniteError, match="e has 1 of 1"):
        optimizer.apply_gradients(grads, tree)
    assert_same_bits(optimizer.gather_state(), state)


def test_compiled_update_of_large_finite_gradients_is_no_error(world):
    """Their squares overflow float32, so a cheap check can't rule out infinity."""
    optimizer = distributed(world, optim.SGD(1.0), shard=True)
    tree = {"w": mx.zeros((100, 100))}
    optimizer.init(tree)
    tree = optimizer.apply_gradients({"w": mx.full((100, 100), 2.0**100)}, tree)
    assert tree["w"][0, 0].item() == -(2.0**100)


@pytest.mark.mpi(min_size=2)
def test_compiled_update_whose_gradients_overflow_by_their_weight_is_refused(world):
    """Each is finite, and the cheap check has to count the weights."""
    optimizer = distributed(world, optim.SGD(1.0), shard=True)
    tree = {"w": mx.zeros((100, 100))}
    optimizer.init(tree)
    grads = {"w": mx.full((100, 100), 1e25)}
    with pytest.raises(NonFiniteError, match="finite, but their sum is not"):
        optimizer.apply_gradients(grads, tree, weight=1e15)
    assert optimizer.step.item() == 0


def two_rules():
    """SGD for `b` and `e`, and Lion for the rest."""
    return optim.MultiOptimizer(
        [optim.SGD(0.5, momentum=0.5), optim.Lion(0.25)],
        [lambda path, _: path in ("b", "e")],
    )


@each_shard
def test_compiled_update_of_two_optimizers_in_a_bucket_steps_each_by_its_rule(
    shard, world
):
    optimizer, reference = distributed(world, two_rules(), shard=shard), two_rules()
    tree = twin = integer_tree(0)
    optimizer.init(tree)
    reference.init(twin)
    buckets = optimizer.pipelines.plan.buckets
    assert any(len(bucket.entries) == 3 for bucket in buckets)  # b, c and e
    assert optimizer.describe().compiled
    for step in range(1, 4):
        tree = optimizer.apply_gradients(integer_tree(step), tree)
        twin = reference.apply_gradients(integer_tree(step), twin)
    assert_as_eager(tree, twin)
    assert_as_eager(optimizer.gather_state(), reference.state)
