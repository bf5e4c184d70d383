"""A world of one rank: where MLX can transform a step, a wrapped one can be too."""

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import pytest

import mlxdist
from tests.support.examples import distributed, each_shard

pytestmark = pytest.mark.mpi


@pytest.fixture(scope="module")
def alone(world):
    """A world of this rank alone."""
    return world.split(world.rank)


def cubes(tree):
    return mx.power(tree["w"], 3).sum()


def squares(tree):
    return mx.square(tree["w"]).sum()


def results(alone, shard, function):
    """Return the results of a function for an MLX optimizer and for a wrapped one."""

    def wrapped(inner):
        return distributed(alone, inner, shard=shard)

    return function(lambda inner: inner).tolist(), function(wrapped).tolist()


@each_shard
def test_step_is_differentiated_as_in_mlx(shard, alone):
    def meta_gradient(wrap):
        def after_two_steps(tree):
            optimizer = wrap(optim.SGD(0.1, momentum=0.9))
            for _ in range(2):
                tree = optimizer.apply_gradients(mx.grad(cubes)(tree), tree)
            return squares(tree)

        return mx.grad(after_two_steps)({"w": mx.array([1.0, 2.0])})["w"]

    expected, actual = results(alone, shard, meta_gradient)
    assert actual == expected


@each_shard
def test_compiled_derivative_of_a_step_is_that_of_mlx(shard, alone):
    def meta_gradient(wrap):
        def after_a_step(tree):
            optimizer = wrap(optim.SGD(0.1))
            return squares(optimizer.apply_gradients(mx.grad(cubes)(tree), tree))

        return mx.compile(mx.grad(after_a_step))({"w": mx.array([1.0, 2.0])})["w"]

    expected, actual = results(alone, shard, meta_gradient)
    assert actual == expected


@each_shard
def test_vmap_over_steps_is_that_of_mlx(shard, alone):
    def steps(wrap):
        def step(weight, gradient):
            optimizer = wrap(optim.SGD(0.1))
            return optimizer.apply_gradients({"w": gradient}, {"w": weight})["w"]

        return mx.vmap(step)(mx.ones((3, 2)), mx.arange(6.0).reshape(3, 2))

    expected, actual = results(alone, shard, steps)
    assert actual == expected


@each_shard
def test_gradients_that_are_nan_are_taken_as_in_mlx(shard, alone):
    optimizer = distributed(alone, optim.SGD(0.1), shard=shard)
    tree = {"w": mx.ones(2)}
    new = optimizer.apply_gradients({"w": mx.array([mx.nan, 1.0])}, tree)
    assert mx.isnan(new["w"]).tolist() == [True, False]


@each_shard
@pytest.mark.parametrize(
    "model", [nn.ReLU(), nn.Sequential(nn.ReLU())], ids=["layer", "list"]
)
def test_model_without_parameters_steps_the_schedule(model, shard, alone):
    optimizer = distributed(alone, optim.SGD(0.1), shard=shard)
    optimizer.init(model.trainable_parameters())
    optimizer.update(model, model.trainable_parameters())
    assert optimizer.step.item() == 1


def test_step_with_weight_0_alone_is_refused(alone):
    optimizer, tree = distributed(alone, optim.SGD(0.1)), {"w": mx.ones(3)}
    optimizer.init(tree)
    with pytest.raises(mlxdist.MismatchError, match="every rank has weight 0"):
        optimizer.apply_gradients(tree, tree, weight=0)
    assert optimizer.step.item() == 0
