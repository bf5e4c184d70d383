"""Steps of a wrapped optimizer inside `mx.compile`, with and without `init` before."""

from functools import partial

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import pytest
from mlx.utils import tree_map

from tests.support.examples import (
    CLASSES,
    distributed,
    each_shard,
    largest_difference,
)
from tests.support.mlx_contract import around, ones_around, wrap

pytestmark = [
    pytest.mark.mpi,
    pytest.mark.filterwarnings("ignore:optimizer.init"),
]


def sum_of(model, x):
    return model(x).sum()


def linear(world, seed=0):
    """Return a layer and this rank's batch; batches differ between the ranks."""
    mx.random.seed(seed)
    model = nn.Linear(10, 10)
    mx.eval(model.parameters())
    mx.random.seed(100 + world.rank)
    return model, mx.random.uniform(shape=(2, 10))


def eager_step(world, shard):
    """Return the parameters after one step that is not compiled."""
    model, x = linear(world)
    optimizer = wrap(world, "SGD", shard, learning_rate=1e-2, momentum=0.9)
    optimizer.update(model, nn.value_and_grad(model, sum_of)(model, x)[1])
    return model.parameters()


@each_shard
def test_pure_compiled_step_is_the_eager_step(shard, world):
    model, x = linear(world)
    optimizer = wrap(world, "SGD", shard, learning_rate=1e-2, momentum=0.9)

    def loss(parameters, x):
        model.update(parameters)
        return model(x).sum()

    @mx.compile
    def step(parameters, state, x):
        gradients = mx.grad(loss)(parameters, x)
        optimizer.state = state
        return optimizer.apply_gradients(gradients, parameters), optimizer.state

    before = tree_map(mx.array, model.parameters())
    optimizer.init(before)
    parameters, state = step(before, optimizer.state, x)
    mx.eval(parameters, state)
    assert largest_difference(parameters, eager_step(world, shard)) < 1e-6


@each_shard
def test_compiled_step_without_init_is_the_eager_step(shard, world):
    model, x = linear(world)
    optimizer = wrap(world, "SGD", shard, learning_rate=1e-2, momentum=0.9)
    state = [model.state, optimizer.state]

    @partial(mx.compile, inputs=state, outputs=state)
    def step(x):
        optimizer.update(model, nn.value_and_grad(model, sum_of)(model, x)[1])

    step(x)
    mx.eval(state)
    assert largest_difference(model.parameters(), eager_step(world, shard)) < 1e-6
    step(x)
    mx.eval(state)
    assert optimizer.step.item() == 2
    assert world.identical(model.parameters())


@pytest.mark.parametrize(
    ("name", "shard"),
    [("AdamW", "elements"), ("Lion", False), ("Adafactor", "tensors")],
)
def test_compiled_steps_without_init_are_those_of_mlx(name, shard, world):
    tree = {"w": mx.ones((4, 3)), "b": [mx.ones(5)]}
    optimizer = distributed(world, CLASSES[name](0.01), shard=shard)
    reference = CLASSES[name](0.01)

    @partial(mx.compile, inputs=optimizer.state, outputs=optimizer.state)
    def step(gradients, tree):
        return optimizer.apply_gradients(gradients, tree)

    expected = tree
    for _ in range(3):
        tree = step(ones_around(tree, world), tree)
        mx.eval(tree, optimizer.state)
        ones = tree_map(mx.ones_like, expected)
        expected = reference.apply_gradients(ones, expected)
    assert largest_difference(tree, expected) < 1e-5
    assert world.identical(tree)


@each_shard
def test_rate_changed_between_compiled_steps_counts(shard, world):
    tree = {"w": mx.ones((5, 5))}
    optimizer = wrap(world, "SGD", shard, learning_rate=-1.0)

    @partial(mx.compile, inputs=optimizer.state)
    def update(gradients):
        return optimizer.apply_gradients(gradients, tree)

    for rate in (-1.0, -2.0, -0.5):
        optimizer.learning_rate = rate
        result = update(ones_around(tree, world))
        mx.eval(result)
        assert mx.array_equal(result["w"], mx.full((5, 5), 1.0 - rate)).item()


@each_shard
def test_init_inside_of_the_compiled_function_works(shard, world):
    tree = {"w": mx.ones((5, 3)), "b": mx.ones(7)}
    optimizer = wrap(world, "SGD", shard, learning_rate=1.0, momentum=0.5)

    @partial(mx.compile, inputs=optimizer.state, outputs=optimizer.state)
    def step(gradients, tree):
        optimizer.init(tree)
        return optimizer.apply_gradients(gradients, tree)

    for wanted in (0.0, -1.5, -3.25):  # velocities of 1, 1.5 and 1.75
        tree = step(ones_around({"w": mx.ones((5, 3)), "b": mx.ones(7)}, world), tree)
        mx.eval(tree, optimizer.state)
        assert tree["w"].tolist() == [[wanted] * 3] * 5
        assert tree["b"].tolist() == [wanted] * 7


def test_init_of_other_parameters_while_compile_traces_is_refused(world):
    optimizer = wrap(world, "SGD", learning_rate=1.0)
    optimizer.init({"w": mx.ones(3)})

    @mx.compile
    def other(tree):
        optimizer.init(tree)

    with pytest.raises(ValueError, match="outside of it"):
        other({"w": mx.ones(4)})


@each_shard
@pytest.mark.mpi(min_size=2)
def test_compiled_step_without_init_gives_all_ranks_the_same_model(shard, world):
    model, x = linear(world, seed=world.rank)
    optimizer = distributed(world, optim.AdamW(1e-2), shard=shard)
    state = [model.state, optimizer.state]

    @partial(mx.compile, inputs=state, outputs=state)
    def step(x):
        optimizer.update(model, nn.value_and_grad(model, sum_of)(model, x)[1])

    for batch in (x, x, mx.concatenate([x] * (1 + world.rank))):  # some trace again
        step(batch)
        mx.eval(state)
        assert world.identical(model.parameters())


@pytest.mark.mpi(min_size=2)
@pytest.mark.filterwarnings("default:optimizer.init")
def test_compiled_step_without_init_warns_of_its_cost_on_rank_0(world, recwarn):
    tree = {"w": mx.ones(3)}
    optimizer = wrap(world, "SGD", learning_rate=1.0)
    step = mx.compile(optimizer.apply_gradients)
    mx.eval(step(around(tree, world), tree))
    texts = [str(warning.message) for warning in recwarn]
    assert len(texts) == (1 if world.is_root else 0)
    assert all("optimizer.init(model) before the first step" in text for text in texts)


@pytest.mark.mpi(min_size=2)
def test_compiled_step_without_init_of_another_shape_is_refused_on_all_ranks(world):
    tree = {"w": mx.ones(3 + (world.rank == world.size - 1))}
    optimizer = wrap(world, "SGD", learning_rate=1.0)
    step = mx.compile(optimizer.apply_gradients)
    with pytest.raises(ValueError, match=r"w float32\[4\]"):
        step(around(tree, world), tree)
