"""The optimizer classes and schedules of MLX give the same when they are wrapped."""

import mlx.core as mx
import mlx.optimizers as optim
import pytest
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from tests.support.examples import (
    CLASSES,
    assert_same_bits,
    distributed,
    each_shard,
    full_like,
    largest_difference,
    make,
    shard_modes,
)

pytestmark = pytest.mark.mpi


def cases(names):
    return [
        pytest.param(name, shard, id=f"{name}-{shard}")
        for name in names
        for shard in shard_modes(name)
    ]


def zero_tree():
    return {"first": [mx.zeros((10, 4)), mx.zeros((1,))], "second": mx.zeros((3, 1))}


@pytest.mark.parametrize(("name", "shard"), cases(CLASSES))
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16], ids=str)
def test_apply_gradients_of_each_class_keeps_structure_and_dtypes(
    dtype, name, shard, world
):
    tree = tree_map(lambda x: x.astype(dtype), zero_tree())
    optimizer = distributed(world, make(name), shard=shard)
    result = optimizer.apply_gradients(full_like(tree, 1), tree)
    assert type(result["first"]) is list
    before, after = tree_flatten(tree), tree_flatten(result)
    assert [(p, x.shape, x.dtype) for p, x in after] == [
        (p, x.shape, x.dtype) for p, x in before
    ]
    assert all(mx.all(x < 0).item() for _, x in after)  # against the gradient


# A MultiOptimizer's state is a list of states, which tree_unflatten can't restore.
@pytest.mark.parametrize(
    ("name", "shard"), cases(sorted(CLASSES.keys() - {"MultiOptimizer"}))
)
def test_state_of_each_class_can_be_set_before_the_first_step(name, shard, world):
    """From a flattened state, such as one that was loaded from a file."""
    first, reference = distributed(world, make(name), shard=shard), make(name)
    tree = twin = zero_tree()
    ones = full_like(tree, 1)
    for _ in range(2):
        tree = first.apply_gradients(ones, tree)
        twin = reference.apply_gradients(ones, twin)
    flat = [(path, mx.array(array)) for path, array in tree_flatten(first.state)]
    other = distributed(world, make(name), shard=shard)
    other.init(tree)
    other.state = tree_unflatten(flat)
    assert_same_bits(
        other.apply_gradients(ones, tree), reference.apply_gradients(ones, twin)
    )
    assert other.step.item() == 3


@pytest.mark.parametrize("corrects", [False, True])
def test_adam_with_and_without_bias_correction_follows_its_paper(corrects, world):
    adam = optim.Adam(1e-2, betas=[0.9, 0.99], bias_correction=corrects)
    optimizer = distributed(world, adam, shard=True)
    parameter = expected = mx.ones((5, 3))
    m, v = 0.0, 0.0
    for step in range(1, 4):
        gradient = mx.full((5, 3), 0.5 * step)
        parameter = optimizer.apply_gradients({"w": gradient}, {"w": parameter})["w"]
        m, v = 0.9 * m + 0.1 * gradient, 0.99 * v + 0.01 * gradient**2
        m_hat = m / (1 - 0.9**step) if corrects else m
        v_hat = v / (1 - 0.99**step) if corrects else v
        expected = expected - 1e-2 * m_hat / (mx.sqrt(v_hat) + 1e-8)
    assert largest_difference({"w": parameter}, {"w": expected}) < 1e-6


def test_sgd_with_momentum_decay_and_nesterov_follows_its_formula(world):
    sgd = optim.SGD(0.1, momentum=0.9, weight_decay=0.01, nesterov=True)
    optimizer = distributed(world, sgd, shard=True)
    parameter, expected, v = mx.ones(7), mx.ones(7), None
    for _ in range(3):
        parameter = optimizer.apply_gradients({"w": mx.full(7, 0.5)}, {"w": parameter})[
            "w"
        ]
        gradient = 0.5 + 0.01 * expected
        v = gradient if v is None else 0.9 * v + gradient
        expected = expected - 0.1 * (gradient + 0.9 * v)
    assert largest_difference({"w": parameter}, {"w": expected}) < 1e-6


SCHEDULES = {
    "exponential": lambda: optim.exponential_decay(1e-1, 0.9),
    "step": lambda: optim.step_decay(1e-1, 0.5, 2),
    "cosine": lambda: optim.cosine_decay(1e-1, 4, 1e-3),
    "linear": lambda: optim.linear_schedule(1e-1, 1e-2, 3),
    "joined": lambda: optim.join_schedules(
        [optim.linear_schedule(0.0, 1e-1, 2), optim.cosine_decay(1e-1, 4)], [2]
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("shard", [False, True])
def test_schedule_gives_the_learning_rates_of_mlx(name, shard, world):
    optimizer = distributed(world, optim.SGD(SCHEDULES[name]()), shard=shard)
    reference = optim.SGD(SCHEDULES[name]())
    tree = twin = zero_tree()
    ones = full_like(tree, 1)
    for step in range(6):
        assert optimizer.step.item() == step
        tree = optimizer.apply_gradients(ones, tree)
        twin = reference.apply_gradients(ones, twin)
        assert optimizer.learning_rate.item() == reference.learning_rate.item()
    assert_same_bits(tree, twin)


@each_shard
def test_clipping_to_max_norm_is_that_of_clip_grad_norm(shard, world):
    grads = {"a": mx.array([3.0, 4.0]), "b": [mx.array([12.0])]}
    zeros = full_like(grads, 0)
    for max_norm in (1.0, 13.0, 100.0):
        optimizer = distributed(world, optim.SGD(1.0), shard=shard, max_norm=max_norm)
        result = optimizer.apply_gradients(grads, zeros)
        clipped, norm = optim.clip_grad_norm(grads, max_norm)
        assert optimizer.grad_norm.item() == norm.item() == 13.0
        assert largest_difference(result, tree_map(mx.negative, clipped)) < 1e-6
