"""What the ranks check together in a step: finite gradients, and drift."""

import math

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_map

import mlxdist
from mlxdist import MismatchError, NonFiniteError
from tests.support.examples import assert_same_bits, gradients, parameters

pytestmark = pytest.mark.mpi
MODES = pytest.mark.parametrize(
    ("shard", "transport"),
    [(s, t) for s in (False, "elements", "tensors") for t in ("native", "host")],
)


def wrap(**options):
    return mlxdist.DistributedOptimizer(optim.AdamW(0.1), **options)


def spoiled(tree, value):
    """The tree with one element of `conv` replaced."""
    flat = np.array(tree["conv"])
    flat[1, 1, 1, 1] = value
    return {**tree, "conv": mx.array(flat)}


@MODES
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_gradients_that_are_not_finite_are_named(value, shard, transport, world):
    if world.size == 1:
        pytest.skip("a world of one is MLX as it is")
    ours = wrap(shard=shard, transport=transport, bucket_size=128)
    own = parameters()
    ours.init(own)
    grads = gradients(own, 0, world.rank)
    own = ours.apply_gradients(grads, own)
    before = tree_map(mx.array, ours.gather_state())
    odd = world.rank == world.size - 1
    with pytest.raises(NonFiniteError, match="conv has 1 of 24 elements") as refusal:
        ours.apply_gradients(spoiled(grads, value) if odd else grads, own)
    assert f"rank {world.size - 1}: conv" in str(refusal.value)
    assert "all finite" in str(refusal.value)
    assert_same_bits(ours.gather_state(), before)
    assert ours.step.item() == 1
    assert world.identical(ours.apply_gradients(grads, own))


@MODES
def test_steps_with_such_gradients_can_be_skipped(shard, transport, world):
    ours = wrap(shard=shard, transport=transport, skip_nonfinite=True)
    own = parameters()
    ours.init(own)
    good = gradients(own, 0, world.rank)
    bad = spoiled(good, math.nan) if world.rank == 0 else good
    same = ours.apply_gradients(bad, own)
    assert_same_bits(same, own)
    assert (ours.skipped, ours.step.item()) == (1, 0)
    moved = ours.apply_gradients(good, own)
    assert (ours.skipped, ours.step.item()) == (1, 1)
    assert not mx.array_equal(moved["conv"], own["conv"])


def test_a_sum_that_overflows_is_found(world):
    if world.size == 1:
        pytest.skip("nothing is added")
    ours = wrap(shard=True)
    own = {"w": mx.zeros(4)}
    ours.init(own)
    with pytest.raises(NonFiniteError, match="finite, but their sum is not"):
        ours.apply_gradients({"w": mx.full((4,), 3e38)}, own)


def flip(array, bit):
    flat = np.array(array)
    flat.reshape(-1).view(np.uint32)[-1] ^= np.uint32(1 << bit)
    return mx.array(flat)


@MODES
@pytest.mark.parametrize("bit", [0, 31])
def test_a_flipped_bit_is_found_within_k_steps(bit, shard, transport, world):
    if world.size == 1:
        pytest.skip("there is nobody to compare with")
    # A sharded optimizer gets each parameter anew from its owner at every step: what
    # goes wrong between two checks is mended, or spread, before the next.
    every = 1 if shard else 5
    ours = wrap(shard=shard, transport=transport, check_every=every)
    own = parameters()
    ours.init(own)

    def train(tree):
        for step in range(8):
            if step == 2 and world.rank == world.size - 1:
                tree = {**tree, "conv": flip(tree["conv"], bit)}
            grads = gradients(tree, step, world.rank)
            tree = ours.apply_gradients(grads, tree)

    with pytest.raises(MismatchError, match="conv with crc32") as refusal:
        train(own)
    assert f"rank {world.size - 1}: " in str(refusal.value)
    assert ours._updates == (2 if shard else 5)


def test_drift_of_replicated_state_is_found(world):
    if world.size == 1:
        pytest.skip("there is nobody to compare with")
    ours = wrap(check_every=3)
    own = parameters()
    ours.init(own)
    grads = tree_map(mx.zeros_like, own)
    ours.apply_gradients(grads, own)
    if world.rank == 1:
        ours.state["two"]["m"] = ours.state["two"]["m"] + 1e-3
    for _ in range(2):
        ours.apply_gradients(grads, own)
    with pytest.raises(MismatchError, match=r"two\.m with crc32"):
        ours.apply_gradients(grads, own)


def test_checks_can_be_turned_off(world):
    ours = wrap(check_every=0)
    own = {"w": mx.zeros(3)}
    ours.init(own)
    for _ in range(3):
        ours.apply_gradients(own, {"w": mx.full((3,), float(world.rank))})
