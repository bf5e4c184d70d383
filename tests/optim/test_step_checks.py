"""Checks of each update: gradients, state and parameters that differ on a rank.

A mismatch is an error on all ranks, and nothing has changed.
"""

import re
import threading

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_map

from mlxdist import MismatchError
from tests.support.examples import (
    assert_same_bits,
    distributed,
    each_shard,
    each_transport,
    full_like,
    gradients,
    parameters,
)

pytestmark = pytest.mark.mpi(min_size=2)


def is_last(world):
    return world.rank == world.size - 1


# -- gradients


def with_more(tree):
    return {**tree, "more": mx.zeros(3)}


def with_flat_conv(tree):
    return {**tree, "conv": tree["conv"].reshape(-1)}


def with_bfloat16_conv(tree):
    return {**tree, "conv": tree["conv"].astype(mx.bfloat16)}


@pytest.mark.parametrize(
    ("shard", "transport"),
    [(False, "native"), (False, "host"), ("elements", "host"), ("tensors", "native")],
)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_more, "there is a gradient for more"),
        (with_flat_conv, r"the gradient of conv is .*float32\[24\], wanted float32"),
        (with_bfloat16_conv, r"bfloat16\[3, 2, 2, 2\], wanted .*\n?.*g\.astype"),
    ],
)
@pytest.mark.parametrize("steps", [0, 1])
def test_update_with_another_gradient_on_one_rank_changes_nothing(
    steps, change, message, shard, transport, world
):
    optimizer = distributed(world, optim.AdamW(0.1), shard=shard, transport=transport)
    tree = parameters()
    optimizer.init(tree)
    grads = gradients(tree, 0, world.rank)
    for _ in range(steps):  # at step 0 checksums are compared too
        tree = optimizer.apply_gradients(grads, tree)
    before = tree_map(mx.array, optimizer.gather_state())
    local = change(grads) if is_last(world) else grads
    wanted = f"rank {world.size - 1}: .*{message}"
    with pytest.raises(MismatchError, match=wanted) as refusal:
        optimizer.apply_gradients(local, tree)
    assert "ready" in str(refusal.value)  # the state of the other ranks
    assert "nothing was changed" in str(refusal.value)
    assert_same_bits(optimizer.gather_state(), before)
    assert world.identical(optimizer.apply_gradients(grads, tree))


@pytest.mark.parametrize("options", [{}, {"master_dtype": mx.float32}], ids=str)
def test_update_with_float32_gradients_of_16_bit_weights_says_how_to_cast_them(
    options, world
):
    optimizer = distributed(world, optim.Adam(0.1), **options)
    weights = {"w": mx.ones((3,), mx.bfloat16)}
    wide = {"w": mx.ones((3,))}
    optimizer.init(weights)
    with pytest.raises(MismatchError, match=r"Cast it, as in g\.astype\(p\.dtype\)"):
        optimizer.apply_gradients(wide, weights)
    cast = tree_map(lambda g, p: g.astype(p.dtype), wide, weights)
    assert optimizer.apply_gradients(cast, weights)["w"].dtype == mx.bfloat16


@each_shard
@each_transport
def test_update_without_gradients_on_one_rank_is_refused(shard, transport, world):
    optimizer = distributed(world, optim.SGD(0.1), shard=shard, transport=transport)
    tree = {"w": mx.zeros(3)}
    optimizer.init(tree)
    with pytest.raises(MismatchError, match="update without gradients"):
        optimizer.apply_gradients({} if is_last(world) else tree, tree)
    optimizer.apply_gradients(tree, tree)


# -- step and hyperparameters


@each_shard
@each_transport
def test_update_with_another_learning_rate_on_one_rank_is_refused(
    shard, transport, world
):
    optimizer = distributed(world, optim.SGD(0.1), shard=shard, transport=transport)
    tree = {"w": mx.zeros(3)}
    optimizer.init(tree)
    optimizer.learning_rate = 0.5
    optimizer.apply_gradients(tree, tree)
    if is_last(world):
        optimizer.learning_rate = 0.25
    with pytest.raises(MismatchError, match=r"learning_rate 0\.25"):
        optimizer.apply_gradients(tree, tree)
    assert optimizer.step.item() == 1


def test_update_after_another_number_of_steps_on_one_rank_is_refused(world):
    optimizer = distributed(world, optim.SGD(0.1))
    tree = {"w": mx.zeros(3)}
    optimizer.init(tree)
    if is_last(world):
        optimizer.resumable_state("load").put_counters({"updates": 1})
    with pytest.raises(MismatchError, match=r"rank \d: 1 step done"):
        optimizer.apply_gradients(tree, tree)


# -- parameters and state that drift apart


def flip_bit(array, bit):
    flat = np.array(array)
    flat.reshape(-1).view(np.uint32)[-1] ^= np.uint32(1 << bit)
    return mx.array(flat)


@each_shard
@each_transport
@pytest.mark.parametrize("bit", [0, 31])
def test_checksum_of_parameters_finds_a_flipped_bit(bit, shard, transport, world):
    # With sharded state each step sends all parameters again, so corruption between
    # two checks may be overwritten or spread to all ranks before the second one.
    check_every = 1 if shard else 5
    optimizer = distributed(
        world,
        optim.AdamW(0.1),
        shard=shard,
        transport=transport,
        check_every=check_every,
    )
    start = parameters()
    optimizer.init(start)

    def train(tree):
        for step in range(8):
            if step == 2 and is_last(world):
                tree = {**tree, "conv": flip_bit(tree["conv"], bit)}
            grads = gradients(tree, step, world.rank)
            tree = optimizer.apply_gradients(grads, tree)

    with pytest.raises(MismatchError, match="conv with crc32") as refusal:
        train(start)
    *equal, last = map(str, range(world.size))
    groups = re.findall(r"ranks? (.*): conv with crc32", str(refusal.value))
    assert groups == [", ".join(equal), last]
    assert optimizer.step.item() == (2 if shard else 5)


def test_checksum_of_replicated_state_finds_drift(world):
    optimizer = distributed(world, optim.AdamW(0.1), check_every=3)
    tree = parameters()
    optimizer.init(tree)
    grads = full_like(tree, 0)
    optimizer.apply_gradients(grads, tree)
    if world.rank == 1:
        optimizer.state["two"]["m"] = optimizer.state["two"]["m"] + 1e-3
    for _ in range(2):
        optimizer.apply_gradients(grads, tree)
    with pytest.raises(MismatchError, match=r"two\.m with crc32"):
        optimizer.apply_gradients(grads, tree)


def differing_parameters(world, check_every):
    """Return an optimizer, gradients, and parameters that differ on each rank."""
    optimizer = distributed(world, optim.SGD(1.0), check_every=check_every)
    optimizer.init({"w": mx.zeros(3)})
    return optimizer, {"w": mx.ones(3)}, {"w": mx.full((3,), float(world.rank))}


def test_checksums_with_check_every_1_are_compared_at_each_step(world):
    optimizer, grads, tree = differing_parameters(world, 1)
    with pytest.raises(MismatchError, match="w with crc32"):
        optimizer.apply_gradients(grads, tree)


def test_checksums_with_check_every_0_are_not_compared(world):
    optimizer, grads, tree = differing_parameters(world, 0)
    for _ in range(3):
        tree = optimizer.apply_gradients(grads, tree)
    assert tree["w"].tolist() == [world.rank - 3.0] * 3


def test_update_with_a_weight_that_is_no_number_is_refused_on_all_ranks(world):
    optimizer, tree = distributed(world), {"w": mx.ones(3)}
    optimizer.init(tree)
    weight = "a" if world.rank == world.size - 1 else 1.0
    with pytest.raises(MismatchError, match="its weight is 'a'"):
        optimizer.apply_gradients(tree, tree, weight=weight)


def test_update_where_all_ranks_have_weight_0_is_refused(world):
    optimizer, tree = distributed(world), {"w": mx.ones(3)}
    optimizer.init(tree)
    with pytest.raises(MismatchError, match="every rank has weight 0"):
        optimizer.apply_gradients(tree, tree, weight=0)
    assert optimizer.step.item() == 0


def test_update_with_another_shape_of_as_many_dimensions_is_refused(world):
    optimizer, tree = distributed(world), {"w": mx.ones((2, 3))}
    optimizer.init(tree)
    grads = {"w": mx.ones((3, 2)) if is_last(world) else mx.ones((2, 3))}
    with pytest.raises(MismatchError, match=r"of w is .*float32\[3, 2\], wanted"):
        optimizer.apply_gradients(grads, tree)


def test_gradient_that_is_none_on_one_rank_is_refused_on_all(world):
    optimizer = distributed(world)
    tree = {"a": mx.ones(3), "b": mx.ones(2)}
    optimizer.init(tree)
    grads = {"a": mx.ones(3), "b": mx.ones(2) if world.rank else None}
    with pytest.raises(MismatchError, match="rank 0: the gradient of b is a None"):
        optimizer.apply_gradients(grads, tree)


def test_weight_that_cannot_be_read_on_one_rank_is_refused_on_all(world):
    class Broken:
        def __float__(self):
            raise RuntimeError

    tree = {"w": mx.ones(3)}
    optimizer = distributed(world)
    optimizer.init(tree)
    weight = 1.0 if world.rank else Broken()
    with pytest.raises(MismatchError, match="rank 0: its weight is <tests"):
        optimizer.apply_gradients(tree, tree, weight)


def test_gradient_that_cannot_be_evaluated_on_one_rank_is_refused_on_all(world):
    def make():
        lazy.append({"w": mx.ones(3) + mx.arange(3)})

    lazy, tree = [], {"w": mx.ones(3)}
    optimizer = distributed(world)
    optimizer.init(tree)
    if world.is_root:  # MLX evaluates nothing on the stream of a thread that has ended
        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
    else:
        make()
    with pytest.raises(MismatchError, match=r"rank 0: the gradients can't be evalu"):
        optimizer.apply_gradients(lazy[0], tree)
    optimizer.apply_gradients(tree, tree)
    assert optimizer.step.item() == 1


class Generator(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = mx.zeros(3)


def test_error_names_the_optimizer_its_class_and_the_model(world):
    optimizer = distributed(world, optim.Adam(0.1))
    model = Generator()
    optimizer.init(model)
    with pytest.raises(MismatchError, match=r"optimizer \d+ \(Adam of Generator\)"):
        optimizer.update(model, {"w": mx.zeros(4)})
