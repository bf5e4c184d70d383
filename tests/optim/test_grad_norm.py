"""The global norm of averaged gradients, and gradients that are not finite."""

import math

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_map

from mlxdist import NonFiniteError
from mlxdist.optim.grad_norm import clip_scale
from tests.support.examples import (
    assert_same_bits,
    distributed,
    each_shard,
    each_transport,
    full_like,
    gradients,
    parameters,
)

pytestmark = pytest.mark.mpi


# -- the norm


@each_shard
@each_transport
@pytest.mark.parametrize("masters", [None, mx.float32])
@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=str)
def test_norm_of_16_bit_gradients_is_computed_in_float32(
    dtype, masters, shard, transport, world
):
    tree = {"w": mx.ones(100, dtype), "b": mx.ones((3, 3), dtype)}
    optimizer = distributed(
        world,
        optim.SGD(1.0),
        shard=shard,
        transport=transport,
        max_norm=1.0,
        master_dtype=masters,
        bucket_size=64,
    )
    optimizer.init(tree)
    tree = optimizer.apply_gradients(full_like(tree, 4096.0), tree)
    norm = 4096 * 109**0.5
    assert optimizer.grad_norm.item() == pytest.approx(norm, rel=1e-5)
    assert tree["w"][0].item() == pytest.approx(1 - 4096 / norm, rel=1e-2)


@each_shard
@pytest.mark.parametrize(
    ("dtype", "value"),
    [(mx.float16, 1 + 2.0**-10), (mx.bfloat16, 1 + 2.0**-7)],
    ids=["float16", "bfloat16"],
)
def test_norm_of_numbers_whose_squares_16_bits_cannot_hold(dtype, value, shard, world):
    tree = {"w": mx.full((101,), value, dtype)}
    optimizer = distributed(world, optim.SGD(0.0), shard=shard, max_norm=math.inf)
    optimizer.init(tree)
    optimizer.apply_gradients(tree, tree)
    norm = value * 101**0.5
    assert optimizer.grad_norm.item() == pytest.approx(norm, rel=1e-6)


@each_shard
@each_transport
def test_norm_whose_square_overflows_float32_is_finite(shard, transport, world):
    """Squares of 2e19 are beyond float32; the gradients and their norm are not."""
    optimizer = distributed(
        world, optim.SGD(0.0), shard=shard, transport=transport, max_norm=1.0
    )
    tree = {"w": mx.zeros(9), "v": mx.zeros((2, 2))}
    optimizer.init(tree)
    optimizer.apply_gradients({"w": mx.full((9,), 2e19), "v": mx.zeros((2, 2))}, tree)
    assert optimizer.grad_norm.item() == pytest.approx(6e19, rel=1e-5)


@each_shard
def test_norm_counts_tied_parameters_once_and_frozen_ones_never(shard, world):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(5, 4)
            self.fixed = nn.Linear(4, 4)
            self.head = self.embed
            self.fixed.freeze()

        def __call__(self, x):
            return self.head.as_linear(self.fixed(self.embed(x)))

    mx.random.seed(2)
    model = Tied()
    optimizer = distributed(world, optim.SGD(0.0), shard=shard, max_norm=1.0)
    optimizer.init(model)
    fixed = model.fixed.parameters()
    tokens = mx.array([1, 2, 3])

    def loss_of(weight):
        hidden = weight[tokens] @ fixed["weight"].T + fixed["bias"]
        return (hidden @ weight.T).square().mean()

    expected = mx.grad(loss_of)(model.embed.weight).square().sum().sqrt().item()
    value_and_grad = nn.value_and_grad(model, lambda m, x: m(x).square().mean())
    optimizer.update(model, value_and_grad(model, tokens)[1])
    assert optimizer.grad_norm.item() == pytest.approx(expected, rel=1e-5)


def test_norm_of_a_skipped_step_is_not_finite(world):
    optimizer = distributed(world, optim.SGD(0.5), max_norm=1.0, skip_nonfinite=True)
    tree = {"a": mx.arange(24.0).reshape(4, 6), "b": mx.ones((3, 5))}
    optimizer.init(tree)
    optimizer.apply_gradients(full_like(tree, 1), tree)
    assert optimizer.grad_norm.item() == pytest.approx(39**0.5)
    value = float("nan") if world.is_root else 1.0
    optimizer.apply_gradients(full_like(tree, value), tree)
    assert optimizer.skipped == 1
    assert not mx.isfinite(optimizer.grad_norm).item()


@pytest.mark.parametrize(
    ("norm", "max_norm", "scale"),
    [(0.0, 1.0, 1.0), (3e-6, 1e-6, 0.25), (3.0, 6.0, 1.0), (8.0, 2.0, 0.25)],
)
def test_clip_scale_is_that_of_clip_grad_norm(norm, max_norm, scale):
    """Which adds 1e-6 to the norm, so that none is divided by 0."""
    assert clip_scale(mx.array(norm), max_norm).item() == pytest.approx(scale, 1e-6)
    grads, _ = optim.clip_grad_norm({"w": mx.array([norm])}, max_norm)
    assert grads["w"].item() == pytest.approx(norm * scale, 1e-6)


@each_shard
@each_transport
def test_norm_of_reproducible_gradients_is_their_norm_and_clips(
    transport, shard, world
):
    optimizer = distributed(
        world,
        optim.SGD(1.0),
        shard=shard,
        transport=transport,
        reproducible=True,
        max_norm=2.5,
    )
    tree = {"a": mx.zeros(8), "b": mx.zeros((2, 4)), "c": mx.zeros(9)}
    optimizer.init(tree)
    tree = optimizer.apply_gradients(full_like(tree, 2.0), tree)
    assert optimizer.grad_norm.item() == 10.0  # of 25 elements
    assert tree["a"].tolist() == pytest.approx([-0.5] * 8, 1e-6)


# -- gradients that are not finite


def with_one_element(tree, value):
    """Return the tree with one element of `conv` replaced."""
    array = np.array(tree["conv"])
    array[1, 1, 1, 1] = value
    return {**tree, "conv": mx.array(array)}


@pytest.mark.mpi(min_size=2)
@each_shard
@each_transport
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nonfinite_gradient_on_one_rank_is_named_and_changes_nothing(
    value, shard, transport, world
):
    optimizer = distributed(
        world, optim.AdamW(0.1), shard=shard, transport=transport, bucket_size=128
    )
    tree = parameters()
    optimizer.init(tree)
    grads = gradients(tree, 0, world.rank)
    tree = optimizer.apply_gradients(grads, tree)
    before = tree_map(mx.array, optimizer.gather_state())
    is_last = world.rank == world.size - 1
    local = with_one_element(grads, value) if is_last else grads
    with pytest.raises(NonFiniteError, match="conv has 1 of 24 elements") as refusal:
        optimizer.apply_gradients(local, tree)
    assert f"rank {world.size - 1}: conv" in str(refusal.value)
    assert "all finite" in str(refusal.value)
    assert_same_bits(optimizer.gather_state(), before)
    assert optimizer.step.item() == 1
    assert world.identical(optimizer.apply_gradients(grads, tree))


@pytest.mark.mpi(min_size=2)
def test_nonfinite_gradient_of_a_rank_without_weight_is_not_named(world):
    optimizer = distributed(world, optim.SGD(1.0))
    tree = {"w": mx.zeros(3)}
    optimizer.init(tree)
    bad = {"w": mx.full((3,), math.nan)}
    with pytest.raises(NonFiniteError, match="rank 0: w has 3 of 3") as refusal:
        optimizer.apply_gradients(bad, tree, weight=float(world.is_root))
    assert str(refusal.value).count("are nan or inf") == 1


@each_shard
@each_transport
def test_nonfinite_gradient_with_skip_nonfinite_skips_the_step(shard, transport, world):
    optimizer = distributed(
        world, optim.AdamW(0.1), shard=shard, transport=transport, skip_nonfinite=True
    )
    tree = parameters()
    optimizer.init(tree)
    good = gradients(tree, 0, world.rank)
    bad = with_one_element(good, math.nan) if world.is_root else good
    same = optimizer.apply_gradients(bad, tree)
    assert_same_bits(same, tree)
    assert (optimizer.skipped, optimizer.step.item()) == (1, 0)
    moved = optimizer.apply_gradients(good, tree)
    assert (optimizer.skipped, optimizer.step.item()) == (1, 1)
    assert not mx.array_equal(moved["conv"], tree["conv"])


@pytest.mark.mpi(min_size=2)
def test_nonfinite_sum_of_finite_gradients_is_refused(world):
    optimizer = distributed(world, optim.AdamW(0.1), shard=True)
    tree = {"w": mx.zeros(4)}
    optimizer.init(tree)
    with pytest.raises(NonFiniteError, match="finite, but their sum is not"):
        optimizer.apply_gradients({"w": mx.full((4,), 3e38)}, tree)


def test_nonfinite_sum_of_micro_batches_skips_the_whole_step(world):
    tree = {"w": mx.zeros(3)}
    optimizer = distributed(world, optim.SGD(1.0), accumulate=2, skip_nonfinite=True)
    optimizer.init(tree)
    for value in (float("inf"), 1.0, 2.0, 4.0):
        local = value if world.rank == world.size - 1 else 1.0
        tree = optimizer.apply_gradients({"w": mx.full((3,), local)}, tree)
    others = world.size - 1
    assert optimizer.skipped == 1
    expected = -(6 + 2 * others) / (2 * world.size)
    assert tree["w"][0].item() == pytest.approx(expected)
