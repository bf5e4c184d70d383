"""`optimizer.state = ...` of something else: refused on all ranks."""

from functools import partial

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_unflatten

from mlxdist import MismatchError, load_checkpoint, save_checkpoint
from mlxdist.arrays.numpy_view import raw
from tests.support.examples import (
    assert_same_bits,
    distributed,
    each_shard,
    gradients,
)
from tests.support.states import before_and_after_init, saved, trained

pytestmark = pytest.mark.mpi


def assert_refused(optimizer, state, call, match):
    """Assert that a state is refused on all ranks, and the one before is back."""
    before = optimizer.gather_state()
    optimizer.state = state
    with pytest.raises(MismatchError, match=match) as refusal:
        call()
    assert "load_state" in str(refusal.value)
    assert_same_bits(optimizer.gather_state(), before)


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
    another_optimizer = {**full, "b": {**full["b"], "mu": mx.ones(5)}}
    if world.size > 1 or shard:  # otherwise MLX's own optimizer takes it
        assert_refused(optimizer, another_shape, step, r"m of w is float32\[4, 4\]")
        assert_refused(optimizer, another_model, step, "head.m")
        assert_refused(optimizer, half, step, "no m of b")
        assert_refused(optimizer, another_optimizer, step, "mu of b, which is of")
    step()


@pytest.mark.mpi(min_size=2)
@each_shard
def test_scalars_that_differ_over_the_ranks_are_refused(shard, world):
    tree = {"w": mx.arange(12.0).reshape(3, 4)}
    optimizer = trained(world, tree, optim.SGD(0.1, momentum=0.9), shard=shard)
    before = optimizer.gather_state()
    step = partial(optimizer.apply_gradients, gradients(tree, 0, 0), tree)
    rate = mx.array(0.1 + 0.1 * world.rank)
    optimizer.state = {**optimizer.state, "learning_rate": rate}
    with pytest.raises(MismatchError, match=r"(?s)an assigned state.*learning_rate"):
        step()
    assert_same_bits(optimizer.gather_state(), before)


@pytest.mark.mpi(min_size=2)
def test_state_of_rank_0_on_all_ranks_is_refused(world):
    tree = {"w": mx.arange(8.0 * world.size).reshape(8, world.size)}
    optimizer = trained(world, tree, shard="elements")
    step = partial(optimizer.apply_gradients, gradients(tree, 0, 0), tree)
    of_root = world.broadcast(optimizer.state["w"])
    state = {**optimizer.state, "w": of_root}
    assert_refused(optimizer, state, step, "on rank 1 is that of rank 0")
    fresh = distributed(world, shard="elements")
    fresh.state = saved(state)
    with pytest.raises(MismatchError, match="load_checkpoint"):
        fresh.init(tree)
    fresh.init(tree)  # which begins anew
    assert not mx.any(fresh.gather_state()["w"]["m"]).item()


@pytest.mark.mpi(min_size=2)
@before_and_after_init
@pytest.mark.parametrize("shard", ["elements", "tensors"])
def test_shard_of_the_next_rank_is_refused(shard, before_init, world):
    """Files of all ranks, each loaded by another one; the slices are equally long."""
    tree = {f"w{i}": mx.arange(8.0) + i for i in range(world.size)}
    optimizer = trained(world, tree, shard=shard, bucket_size=32 * world.size)
    flat = {}
    for name, leaf in tree_flatten(optimizer.state):
        every = [
            mx.array(np.frombuffer(data, np.uint8)).view(leaf.dtype).reshape(leaf.shape)
            for data in world.control.all_gather_bytes(bytes(raw(leaf)))
        ]
        flat[name] = every[(world.rank + 1) % world.size]
    other = distributed(world, shard=shard, bucket_size=32 * world.size)
    if not before_init:
        other.init(tree)
    other.state = tree_unflatten(list(flat.items()))
    call = partial(other.init, tree) if before_init else other.gather_state
    with pytest.raises(MismatchError, match="shard of rank 1 of"):
        call()


@each_shard
def test_flat_state_and_one_without_moments_are_refused(shard, world):
    """`dict(tree_flatten(state))` in the place of the nested state."""
    tree = {"w": mx.arange(12.0), "b": mx.arange(5.0)}
    optimizer = trained(world, tree, shard=shard)
    step = partial(optimizer.apply_gradients, gradients(tree, 0, 0), tree)
    full = optimizer.gather_state()
    if world.size > 1 or shard:
        flat = dict(tree_flatten(full))
        assert_refused(optimizer, flat, step, "it has '.*m' at its root")
        scalars = {name: full[name] for name in ("step", "learning_rate")}
        assert_refused(optimizer, scalars, step, "it has no moments")


@each_shard
def test_state_of_what_is_no_array_is_refused_before_init(shard, world):
    """Such as the tensors of another framework: no state would begin anew unseen."""
    tree = {"w": mx.arange(12.0)}
    full = trained(world, tree).gather_state()
    other = distributed(world, shard=shard)
    other.state = {**full, "w": dict.fromkeys(full["w"], object())}
    if world.size > 1 or shard:
        with pytest.raises(MismatchError, match="of type object: make it an"):
            other.init(tree)


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
    assert_refused(optimizer, state, step, "no m of")


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
    assert_refused(
        optimizer, other, step, f"rank {world.size - 1} is not that of rank 0"
    )
    if world.rank == world.size - 1:
        other = {**other, "step": mx.array(7, mx.uint64)}
    optimizer.state = other
    wanted = f"rank {world.size - 1} is not that of rank 0"
    with pytest.raises(MismatchError, match=wanted):
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


def test_state_that_is_no_dict_is_refused(world):
    optimizer = distributed(world, shard=True)
    with pytest.raises(ValueError, match="it must be a dict"):
        optimizer.state = [mx.zeros(3)]


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
def test_full_state_is_refused_while_compile_traces_and_taken_by_init(shard, world):
    tree = {"w": mx.arange(24.0).reshape(6, 4)}
    optimizer = trained(world, tree, shard=shard, transport="native")
    full = optimizer.gather_state()
    optimizer.state = saved(full)
    step = mx.compile(optimizer.apply_gradients, inputs=optimizer.state)
    if shard == "elements":
        with pytest.raises(ValueError, match=r"init\(model\) before, which cuts"):
            step(tree, tree)
    optimizer.state = saved(full)
    optimizer.init(tree)
    assert_same_bits(optimizer.gather_state(), full)
