"""Steps of models with thousands of small tensors: work is counted, not timed."""

import sys

import mlx.core as mx
import mlx.optimizers as optim
import pytest

from tests.support.examples import assert_same_bits, distributed, each_shard

pytestmark = pytest.mark.mpi
# Python calls for each tensor and step, of functions in Python and in C. MLX's own
# AdamW makes more than 20 for its arithmetic alone.
MOST_CALLS = 32
INNER = {
    "AdamW": lambda: optim.AdamW(1e-2, weight_decay=0.1),
    "SGD": lambda: optim.SGD(1e-2, momentum=0.9),
}


def small_tensors(number, value=1.0):
    """Return a tree of so many tensors of 1 to 4 elements."""
    return {
        "layers": [
            {"weight": mx.full((i % 4 + 1,), value + i), "bias": mx.full((1,), value)}
            for i in range(number // 2)
        ]
    }


def calls_of(function):
    """Return how many Python calls a function makes."""
    count = 0

    def profile(frame, event, argument):
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(None)
    return count


def calls_of_a_step(world, inner, shard, number):
    """Return the Python calls of the first step and of a later one."""
    optimizer = distributed(world, inner, shard=shard)
    trees = [small_tensors(number)]
    gradients = small_tensors(number, 1.0 + world.rank)
    mx.eval(trees, gradients)
    optimizer.init(trees[0])

    def step():
        trees.append(optimizer.apply_gradients(gradients, trees.pop()))
        mx.eval(trees)

    counts = [calls_of(step) for _ in range(3)]
    return counts[0], counts[2]


@each_shard
@pytest.mark.parametrize("name", INNER)
def test_step_of_many_tensors_makes_few_calls_for_each(name, shard, world):
    few = calls_of_a_step(world, INNER[name](), shard, 200)
    many = calls_of_a_step(world, INNER[name](), shard, 400)
    first, later = ((m - f) / 200 for f, m in zip(few, many, strict=True))
    assert later < MOST_CALLS
    assert first < 8 * MOST_CALLS


@each_shard
@pytest.mark.parametrize("name", INNER)
def test_step_of_many_tensors_gives_the_bits_of_mlx(name, shard, world):
    optimizer, reference = distributed(world, INNER[name](), shard=shard), INNER[name]()
    tree = twin = small_tensors(150)
    optimizer.init(tree)
    for step in range(1, 4):
        gradients = small_tensors(150, float(step))
        tree = optimizer.apply_gradients(gradients, tree)
        twin = reference.apply_gradients(gradients, twin)
    assert_same_bits(tree, twin)
    assert_same_bits(optimizer.gather_state(), reference.state)


def test_step_of_many_tensors_uses_a_rule_that_was_replaced(world, monkeypatch):
    """On the class, after the first step."""
    optimizer = distributed(world, optim.SGD(0.5), shard=False)
    tree = small_tensors(100)
    optimizer.init(tree)
    tree = optimizer.apply_gradients(tree, tree)
    shapes = []

    def apply_single(self, gradient, parameter, state):
        shapes.append(parameter.shape)
        return parameter

    monkeypatch.setattr(optim.SGD, "apply_single", apply_single)
    after = optimizer.apply_gradients(tree, tree)
    assert len(shapes) == 100
    assert_same_bits(after, tree)
