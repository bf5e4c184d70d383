"""`optimizer.state = ...`: a full state is cut, a rank's part is taken."""

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_map

from mlxdist.optim.state_values import SHARD_KEY
from tests.support.examples import (
    apply_steps,
    assert_same_bits,
    distributed,
    each_shard,
    gradients,
    parameters,
)
from tests.support.states import assign, before_and_after_init, saved, trained

pytestmark = pytest.mark.mpi


@before_and_after_init
@each_shard
def test_state_of_each_rank_is_taken(shard, before_init, world):
    tree = parameters()
    optimizer = trained(world, tree, shard=shard)
    full = optimizer.gather_state()
    other = distributed(world, shard=shard)
    assign(other, saved(optimizer.state), tree, before_init)
    assert_same_bits(other.gather_state(), full)
    grads = gradients(tree, 3, world.rank)
    assert_same_bits(
        other.apply_gradients(grads, tree), optimizer.apply_gradients(grads, tree)
    )


@before_and_after_init
@each_shard
def test_full_state_is_cut_and_not_changed(shard, before_init, world):
    tree = parameters()
    full = trained(world, tree).gather_state()
    given = saved(full)
    other = distributed(world, shard=shard)
    assign(other, given, tree, before_init)
    assert_same_bits(other.gather_state(), full)
    assert other.step.item() == 2
    if not before_init:
        assert_same_bits(given, full)
    assert (SHARD_KEY in other.state) == (bool(shard) and world.size > 1)


@before_and_after_init
def test_state_of_an_element_a_rank_is_cut_by_the_full_shape(before_init, world):
    """Shapes (N, k), (N,), (1,) and scalars, where slices look like whole arrays."""
    n = world.size
    tree = {
        "matrix": mx.arange(3.0 * n).reshape(n, 3),
        "vector": mx.arange(float(n)),
        "one": mx.ones(1),
        "scalar": mx.array(2.0),
    }
    full = trained(world, tree).gather_state()
    other = distributed(world, shard="elements")
    assign(other, saved(full), tree, before_init)
    assert_same_bits(other.gather_state(), full)


@pytest.mark.mpi(min_size=2)
def test_state_of_each_rank_with_equal_rows_is_taken(world):
    """The gradient of `model(x).sum()` has equal rows: slices of all ranks agree."""
    tree = {"w": mx.zeros((3 * world.size, 4))}
    optimizer = distributed(world, shard="elements")
    optimizer.init(tree)
    rows = mx.broadcast_to(mx.arange(4.0), (3 * world.size, 4))
    optimizer.apply_gradients({"w": rows}, tree)
    full = optimizer.gather_state()
    optimizer.state = saved(optimizer.state)
    assert_same_bits(optimizer.gather_state(), full)


@pytest.mark.mpi(min_size=2)
def test_equal_states_that_are_constant_are_taken(world):
    """The state of each rank is zero after init: equal bits are no mistake."""
    tree = {"w": mx.ones((4 * world.size,))}
    optimizer = distributed(world, shard="elements")
    optimizer.init(tree)
    optimizer.state = saved(optimizer.state)
    tree = optimizer.apply_gradients({"w": mx.ones((4 * world.size,))}, tree)
    optimizer.state = saved(optimizer.state)
    optimizer.apply_gradients(tree, tree)
    assert optimizer.step.item() == 2


@each_shard
def test_state_assigned_to_the_wrapped_optimizer_is_cut_and_marked(shard, world):
    tree = {"w": mx.arange(12.0)}
    optimizer = trained(world, tree, shard=shard)
    full = optimizer.gather_state()
    optimizer.optimizer.state = saved(full)
    assert_same_bits(optimizer.gather_state(), full)
    assert (SHARD_KEY in optimizer.state) == (bool(shard) and world.size > 1)


@each_shard
def test_items_of_the_state_are_replaced_in_place(shard, world):
    tree = {"w": mx.arange(12.0)}
    optimizer = trained(world, tree, shard=shard)
    optimizer.state["step"] = mx.array(10, mx.uint64)
    if "w" in optimizer.state:
        optimizer.state["w"] = tree_map(mx.zeros_like, optimizer.state["w"])
    assert not mx.any(optimizer.gather_state()["w"]["m"]).item()
    optimizer.apply_gradients(tree, tree)
    assert optimizer.step.item() == 11


@each_shard
def test_state_of_a_multi_optimizer_is_taken(shard, world):
    by_shape = [lambda path, x: x.ndim == 2]

    def make():
        inner = optim.MultiOptimizer([optim.AdamW(0.1), optim.SGD(0.1, 0.9)], by_shape)
        return distributed(world, inner, shard=shard)

    tree = {"w": mx.arange(12.0).reshape(3, 4), "b": mx.arange(5.0)}
    optimizer = make()
    optimizer.init(tree)
    apply_steps(optimizer, tree, range(2), world.rank)
    full = optimizer.gather_state()
    for state in (saved(full), saved(optimizer.state)):
        other = make()
        other.init(tree)
        other.state = state
        assert_same_bits(other.gather_state(), full)


@each_shard
def test_state_in_masters_and_ema_keeps_the_copies_that_it_lacks(shard, world):
    tree = {"w": mx.arange(12.0).astype(mx.bfloat16)}
    options = {"shard": shard, "master_dtype": mx.float32, "ema_decay": 0.9}
    optimizer = trained(world, tree, **options)
    full = optimizer.gather_state()
    plain = {k: v for k, v in full["w"].items() if k in ("m", "v")}
    optimizer.state = saved({**full, "w": plain})
    if world.size > 1 or shard:
        assert_same_bits(optimizer.gather_state(), full)


@before_and_after_init
@each_shard
def test_assigned_state_may_be_numpys_and_stays_the_users(shard, before_init, world):
    """As `safetensors.numpy.load_file` returns it."""
    tree = {"w": mx.arange(12.0), "b": mx.arange(5.0)}
    optimizer = trained(world, tree, shard=shard)
    given = tree_map(np.array, optimizer.gather_state())
    ids = tree_map(id, given)
    other = distributed(world, shard=shard)
    if world.size > 1 or shard:
        assign(other, given, tree, before_init)
        apply_steps(other, tree, [2], world.rank)
        apply_steps(optimizer, tree, [2], world.rank)
        assert_same_bits(other.gather_state(), optimizer.gather_state())
        assert tree_map(id, given) == ids
