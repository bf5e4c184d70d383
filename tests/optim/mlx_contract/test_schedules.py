"""Schedules and learning rates of a wrapped optimizer."""

import math
from functools import partial

import mlx.core as mx
import mlx.optimizers as optim
import pytest

from tests.support.examples import CLASSES, distributed, each_shard
from tests.support.mlx_contract import around, each_class, ones_around, wrap

pytestmark = pytest.mark.mpi


@each_class
def test_step_decay_gives_the_rate_of_each_step(name, shard, world):
    inner = CLASSES[name](learning_rate=optim.step_decay(1e-1, 0.9, 1))
    optimizer = distributed(world, inner, shard=shard)
    tree = {"w": mx.ones((5, 5))}
    for step in range(10):
        optimizer.apply_gradients(ones_around(tree, world), tree)
        assert optimizer.learning_rate.item() == pytest.approx(0.1 * 0.9**step)


@each_shard
def test_step_decay_at_step_2500_has_decayed_twice(shard, world):
    optimizer = wrap(
        world, "SGD", shard, learning_rate=optim.step_decay(0.1, 0.9, 1000)
    )
    optimizer.state["step"] = mx.array(2500, mx.uint64)
    optimizer.update({}, {})
    assert optimizer.learning_rate.item() == pytest.approx(0.1 * 0.9**2)


@each_shard
def test_cosine_decay_ends_at_its_last_value(shard, world):
    schedule = optim.cosine_decay(0.1, 10, 0.05)
    optimizer = wrap(world, "SGD", shard, learning_rate=schedule)
    for _ in range(5):
        optimizer.update({}, {})
    wanted = 0.05 + 0.05 * 0.5 * (1 + math.cos(math.pi * 4 / 10))
    assert optimizer.learning_rate.item() == pytest.approx(wanted)
    for _ in range(16):
        optimizer.update({}, {})
    assert optimizer.learning_rate.item() == pytest.approx(0.05)


@each_shard
def test_warmup_joined_with_cosine_decay_follows_both(shard, world):
    warmup = optim.linear_schedule(0.0, 1e-5, 100)
    joined = optim.join_schedules([warmup, optim.cosine_decay(1e-5, 100)], [101])
    optimizer = wrap(world, "Adam", shard, learning_rate=joined)
    assert optimizer.learning_rate.item() == 0.0
    for _ in range(101):
        optimizer.update({}, {})
    assert optimizer.learning_rate.item() == pytest.approx(1e-5)
    for _ in range(51):
        optimizer.update({}, {})
    assert optimizer.learning_rate.item() == pytest.approx(5e-6)
    assert optimizer.step.item() == 152


@pytest.mark.parametrize("begun", [False, True], ids=["before init", "after init"])
@pytest.mark.parametrize("empty", ["update", "apply_gradients"])
@each_shard
def test_schedules_step_without_gradients_while_compile_traces(
    shard, empty, begun, world
):
    schedule = optim.exponential_decay(1e-1, 0.9)
    optimizer = wrap(world, "SGD", shard, learning_rate=schedule)
    if begun:
        optimizer.init({"w": mx.zeros(7)})

    @partial(mx.compile, inputs=optimizer.state, outputs=optimizer.state)
    def tick():
        getattr(optimizer, empty)({}, {})

    for step in range(5):
        tick()
        mx.eval(optimizer.state)
        assert optimizer.learning_rate.item() == pytest.approx(0.1 * 0.9**step)
    assert optimizer.step.item() == 5
    tree = {"w": mx.zeros(7)}
    optimizer.apply_gradients(ones_around(tree, world), tree)
    assert optimizer.step.item() == 6


@each_shard
def test_schedules_of_a_multi_optimizer_step_while_compile_traces(shard, world):
    leaves = [
        optim.SGD(optim.exponential_decay(0.1, 0.5)),
        optim.Adam(optim.linear_schedule(0.0, 1.0, 4)),
    ]
    inner = optim.MultiOptimizer(leaves, [lambda path, weight: weight.ndim > 1])
    optimizer = distributed(world, inner, shard="tensors" if shard else False)

    @partial(mx.compile, inputs=optimizer.state, outputs=optimizer.state)
    def tick():
        optimizer.update({}, {})

    for _ in range(3):
        tick()
        mx.eval(optimizer.state)
    rates = [leaf.learning_rate.item() for leaf in leaves]
    assert rates == pytest.approx([0.1 * 0.5**2, 0.5])


@each_shard
def test_schedules_step_between_compiled_steps_with_gradients(shard, world):
    schedule = optim.exponential_decay(1.0, 0.5)
    optimizer = wrap(world, "SGD", shard, learning_rate=schedule)
    tree = {"w": mx.zeros(7)}
    optimizer.init(tree)

    @partial(mx.compile, inputs=optimizer.state, outputs=optimizer.state)
    def tick():
        optimizer.apply_gradients({}, {})

    @partial(mx.compile, inputs=optimizer.state, outputs=optimizer.state)
    def step(gradients, tree):
        return optimizer.apply_gradients(gradients, tree)

    tick()
    tree = step(ones_around(tree, world), tree)
    mx.eval(tree, optimizer.state)
    assert tree["w"].tolist() == [-0.5] * 7
    tick()
    ones = {"w": mx.ones(7)}
    tree = step(around(ones, world), tree)
    mx.eval(tree, optimizer.state)
    assert tree["w"].tolist() == [-0.5 - 0.125] * 7
