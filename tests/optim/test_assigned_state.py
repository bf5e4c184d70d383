"""`optimizer.state = ...`: a full state is cut, a rank's own taken, others refused."""

from functools import partial

import mlx.core as mx
import mlx.optimizers as optim
import pytest
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from mlxdist import MismatchError, load_checkpoint, save_checkpoint
from tests.support.examples import (
    apply_steps,
    assert_same_bits,
    distributed,
    each_shard,
    gradients,
    parameters,
)

pytestmark = pytest.mark.mpi
before_and_after_init = pytest.mark.parametrize("before_init", [True, False])


def saved(state):
    """Return a state as it comes back from a file, flattened and nested again."""
    flat = [(path, mx.array(leaf)) for path, leaf in tree_flatten(state)]
    return tree_unflatten(flat)


def trained(world, tree, inner=None, **options):
    """Return an optimizer after two steps with other gradients on each rank."""
    optimizer = distributed(world, inner, **options)
    optimizer.init(tree)
    apply_steps(optimizer, tree, range(2), world.rank)
    return optimizer


def assign(optimizer, state, tree, before_init):
    if not before_init:
        optimizer.init(tree)
    optimizer.state = state
    if before_init:
        optimizer.init(tree)


@before_and_after_init
@each_shard
def test_own_state_of_each_rank_is_taken(shard, before_init, world):
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


def assert_refused(optimizer, call, match):
    """Assert that a call is refused on all ranks, and the state from before is back."""
    before = optimizer.gather_state()

    def check(state):
        optimizer.state = state
        with pytest.raises(MismatchError, match=match) as refusal:
            call()
        assert "load_state" in str(refusal.value)
        assert_same_bits(optimizer.gather_state(), before)

    return check


@each_shard
def test_state_of_something_else_is_refused_and_the_one_before_is_back(shard, world):
    tree = {"w": mx.arange(12.0).reshape(3, 4), "b": mx.arange(5.0)}
    optimizer = trained(world, tree, optim.Adam(0.1), shard=shard)
    grads = gradients(tree, 0, 0)
    step = partial(optimizer.apply_gradients, grads, tree)
    full = saved(optimizer.gather_state())
    another_shape = {**full, "w": {"m": mx.ones((4, 4)), "v": mx.ones((4, 4))}}
    another_model = {**full, "head": {"m": mx.ones(3), "v": mx.ones(3)}}
    half = {key: full[key] for key in ("step", "learning_rate", "w")}
    another_optimizer = {**full, "b": {"m": mx.ones(5), "mu": mx.ones(5)}}
    if world.size > 1 or shard:  # otherwise MLX's own optimizer takes it
        assert_refused(optimizer, step, r"m of w is float32\[4, 4\]")(another_shape)
        assert_refused(optimizer, step, "head.m")(another_model)
        assert_refused(optimizer, step, "no m of b")(half)
        assert_refused(optimizer, step, "no v of b|mu of b")(another_optimizer)
    step()


@pytest.mark.mpi(min_size=2)
def test_state_of_rank_0_on_all_ranks_is_refused(world):
    tree = {"w": mx.arange(8.0 * world.size).reshape(8, world.size)}
    optimizer = trained(world, tree, shard="elements")
    step = partial(optimizer.apply_gradients, gradients(tree, 0, 0), tree)
    of_root = world.broadcast(optimizer.state["w"])
    state = {**optimizer.state, "w": of_root}
    assert_refused(optimizer, step, "on rank 1 is that of rank 0")(state)
    fresh = distributed(world, shard="elements")
    fresh.state = saved(state)
    with pytest.raises(MismatchError, match="load_checkpoint"):
        fresh.init(tree)
    fresh.init(tree)  # which begins anew
    assert not mx.any(fresh.gather_state()["w"]["m"]).item()


@pytest.mark.mpi(min_size=2)
def test_shard_of_rank_0_by_tensors_on_all_ranks_is_refused(world):
    tree = {f"w{i}": mx.arange(4.0) + i for i in range(2 * world.size)}
    optimizer = trained(world, tree, shard="tensors")
    mine = {name for name in tree if name in optimizer.state}
    assert mine < tree.keys()
    moments = {"m": mx.ones(4), "v": mx.ones(4)}
    of_root = world.control.all_gather_bytes(" ".join(mine).encode())[0].decode()
    state = {name: optimizer.state[name] for name in ("step", "learning_rate")}
    state |= dict.fromkeys(of_root.split(), moments)
    step = partial(optimizer.apply_gradients, gradients(tree, 0, 0), tree)
    assert_refused(optimizer, step, "no m of")(state)


@pytest.mark.mpi(min_size=2)
def test_equal_states_that_are_constant_are_taken(world):
    """Each rank's own state is zero after init: the same bits, and no mistake."""
    tree = {"w": mx.ones((4 * world.size,))}
    optimizer = distributed(world, shard="elements")
    optimizer.init(tree)
    optimizer.state = saved(optimizer.state)
    tree = optimizer.apply_gradients({"w": mx.ones((4 * world.size,))}, tree)
    optimizer.state = saved(optimizer.state)
    optimizer.apply_gradients(tree, tree)
    assert optimizer.step.item() == 2


@pytest.mark.mpi(min_size=2)
@each_shard
def test_state_assigned_on_one_rank_only_is_refused_on_all(shard, world):
    tree = {"w": mx.arange(12.0), "b": mx.arange(5.0)}
    optimizer = trained(world, tree, shard=shard)
    full = optimizer.gather_state()
    if world.rank == world.size - 1:
        optimizer.state = saved(full)
    with pytest.raises(MismatchError, match="with an assigned state"):
        optimizer.apply_gradients(gradients(tree, 0, 0), tree)
    optimizer.apply_gradients(gradients(tree, 0, 0), tree)
    assert world.identical(optimizer.gather_state())


@pytest.mark.mpi(min_size=2)
@each_shard
def test_full_states_that_differ_are_refused_after_init(shard, world):
    tree = {"w": mx.arange(12.0), "b": mx.arange(5.0)}
    optimizer = trained(world, tree, shard=shard)
    other = saved(optimizer.gather_state())
    if world.rank == world.size - 1:
        other["b"]["m"] = other["b"]["m"] + 1
    step = partial(optimizer.apply_gradients, gradients(tree, 0, 0), tree)
    assert_refused(optimizer, step, f"rank {world.size - 1} is not that of rank 0")(
        other
    )
    if world.rank == world.size - 1:
        other = {**other, "step": mx.array(7, mx.uint64)}
    optimizer.state = other
    with pytest.raises(MismatchError):
        step()


@each_shard
def test_state_without_the_step_is_refused(shard, world):
    tree = {"w": mx.arange(12.0)}
    optimizer = trained(world, tree, shard=shard)
    state = saved(optimizer.gather_state())
    del state["step"]
    optimizer.state = state
    with pytest.raises((MismatchError, KeyError), match="step"):
        optimizer.apply_gradients(tree, tree)


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


def test_state_that_is_no_dict_is_refused(world):
    optimizer = distributed(world, shard=True)
    with pytest.raises(ValueError, match="it must be a dict"):
        optimizer.state = [mx.zeros(3)]


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
    full, own = optimizer.gather_state(), saved(optimizer.state)
    for state in (saved(full), own):
        other = make()
        other.init(tree)
        other.state = state
        assert_same_bits(other.gather_state(), full)


@each_shard
def test_pending_state_is_not_saved_and_is_replaced_by_a_checkpoint(
    shard, world, shared_folder
):
    tree = {"w": mx.arange(12.0), "b": mx.arange(5.0)}
    optimizer = trained(world, tree, shard=shard)
    full = saved(optimizer.gather_state())
    save_checkpoint(shared_folder, 1, tree, optimizer)
    optimizer.state = {**full, "w": {"m": mx.zeros(3), "v": mx.zeros(3)}}
    if world.size > 1 or shard:
        with pytest.raises(MismatchError, match="is not taken yet"):
            save_checkpoint(shared_folder, 2, tree, optimizer)
        load_checkpoint(shared_folder, tree, optimizer)
        assert_same_bits(optimizer.gather_state(), full)


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
