"""Wrapped classes that override methods: honoured, or refused with the remedy."""

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import pytest
from mlx.utils import tree_flatten, tree_map

import mlxdist
from tests.support.examples import (
    apply_steps,
    assert_same_bits,
    distributed,
    each_shard,
    full_like,
    parameters,
)

pytestmark = pytest.mark.mpi


class Lookahead(optim.SGD):
    def update(self, model, gradients):
        super().update(model, gradients)
        model.update(tree_map(lambda x: x / 2, model.trainable_parameters()))


class Clipping(optim.SGD):
    """Clips by the norm of all gradients that it sees."""

    def apply_gradients(self, gradients, parameters):
        clipped, _ = optim.clip_grad_norm(gradients, 1.0)
        return super().apply_gradients(clipped, parameters)


class Counted(optim.SGD):
    """Has state for all parameters together."""

    def init(self, parameters):
        super().init(parameters)
        self.state["count"] = mx.array(len(tree_flatten(parameters)))

    def apply_single(self, gradient, parameter, state):
        return parameter - gradient / self.state["count"].astype(gradient.dtype)


class Halving(optim.Optimizer):
    """Steps by a learning rate that is a property."""

    elementwise = True

    def init_single(self, parameter, state):
        state["last"] = mx.zeros_like(parameter)

    @property
    def learning_rate(self):
        return mx.array(1.0) / self.step

    def apply_single(self, gradient, parameter, state):
        state["last"] = gradient
        return parameter - self.learning_rate.astype(gradient.dtype) * gradient


class OtherSplit(optim.MultiOptimizer):
    def _split_dictionary(self, gradients):
        return [{}, gradients]


class Elementwise(Clipping):
    elementwise = True

    def apply_gradients(self, gradients, parameters):
        half = tree_map(lambda g: g / 2, gradients)
        return optim.SGD.apply_gradients(self, half, parameters)


def trained(optimizer):
    tree = parameters()
    optimizer.init(tree)
    return apply_steps(optimizer, tree, range(3))


@pytest.mark.parametrize(
    ("kind", "shard"),
    [
        (Clipping, False),
        (Counted, False),
        (Elementwise, False),
        (Elementwise, True),
        (Halving, False),
        (Halving, True),
        (Halving, "tensors"),
    ],
)
def test_override_that_is_honoured_trains_as_mlx(kind, shard, world):
    def make():
        return kind() if kind is Halving else kind(0.5)

    optimizer = distributed(world, make(), shard=shard)
    assert_same_bits(trained(optimizer), trained(make()))


@pytest.mark.parametrize("kind", [Clipping, Counted])
@pytest.mark.parametrize("shard", [True, "tensors"])
def test_override_that_needs_all_parameters_is_refused_where_sharded(
    kind, shard, world
):
    optimizer = distributed(world, kind(0.5), shard=shard)
    with pytest.raises(mlxdist.MismatchError, match="use shard=False"):
        optimizer.init(parameters())


@each_shard
def test_overridden_update_is_refused_for_a_model(shard, world):
    class Declared(Lookahead):
        elementwise = True

    model = nn.Linear(3, 2)
    optimizer = distributed(world, Declared(0.5), shard=shard)
    with pytest.raises(mlxdist.MismatchError, match="average_gradients"):
        optimizer.init(model)
    with pytest.raises(ValueError, match="average_gradients"):
        optimizer.update(model, full_like(model.trainable_parameters(), 1.0))


def test_overridden_update_does_not_matter_to_apply_gradients(world):
    assert_same_bits(
        trained(distributed(world, Lookahead(0.5))), trained(Lookahead(0.5))
    )


def test_update_assigned_to_the_object_is_refused(world):
    inner = optim.SGD(0.5)
    inner.update = lambda model, gradients: None
    with pytest.raises(mlxdist.MismatchError, match=r"update\(\) of its own"):
        distributed(world, inner).init(nn.Linear(3, 2))


def test_multi_optimizer_with_an_overridden_split_is_refused(world):
    inner = OtherSplit([optim.SGD(0.5), optim.SGD(0.25)], [lambda path, x: True])
    with pytest.raises(mlxdist.MismatchError, match=r"plain optim\.MultiOptimizer"):
        distributed(world, inner).init(parameters())


@pytest.mark.mpi(min_size=2)
def test_class_with_an_override_on_one_rank_is_refused_on_all(world):
    inner = Lookahead(0.5) if world.is_root else optim.SGD(0.5)
    with pytest.raises(mlxdist.MismatchError, match=r"rank 0: Lookahead has an update"):
        distributed(world, inner).init(nn.Linear(3, 2))


# -- what apply_single returns


@each_shard
def test_new_parameter_of_another_dtype_is_cast_back(shard, world):
    class Widening(optim.Optimizer):
        elementwise = True

        def init_single(self, parameter, state):
            pass

        def apply_single(self, gradient, parameter, state):
            return parameter.astype(mx.float32) - gradient

    optimizer = distributed(world, Widening(), shard=shard)
    tree = trained(optimizer)
    assert tree["half"].dtype == mx.float16
    assert optimizer.step.item() == 3


@pytest.mark.parametrize("shard", [False, "elements"])
@pytest.mark.parametrize(
    ("new", "description"),
    [
        (None, "a NoneType"),
        (mx.zeros((3, 3)), r"\[3, 3\]"),
        (mx.zeros((2, 4)), r"\[2, 4\]"),
    ],
)
def test_new_parameter_that_does_not_fit_is_refused(new, description, shard, world):
    class Wrong(optim.SGD):
        elementwise = True

        def apply_single(self, gradient, parameter, state):
            return new

    optimizer = distributed(world, Wrong(0.5), shard=shard)
    tree = {"w": mx.zeros(8)}
    optimizer.init(tree)
    with pytest.raises(ValueError, match=rf"Wrong returned {description} as the new w"):
        apply_steps(optimizer, tree, [0])


# -- random numbers


class Noisy(optim.SGD):
    def apply_single(self, gradient, parameter, state):
        noise = mx.random.normal(parameter.shape).astype(parameter.dtype)
        return super().apply_single(gradient + noise, parameter, state)


class NoisyTree(optim.SGD):
    def apply_gradients(self, gradients, parameters):
        noisy = tree_map(lambda g: g + mx.random.normal(g.shape), gradients)
        return super().apply_gradients(noisy, parameters)


@pytest.mark.parametrize("kind", [Noisy, NoisyTree])
@pytest.mark.mpi(min_size=2)
def test_random_numbers_in_a_replicated_update_are_refused(kind, world):
    optimizer = distributed(world, kind(0.5))
    tree = {"a": mx.ones((3, 2)), "b": mx.ones(3)}
    optimizer.init(tree)
    with pytest.raises(ValueError, match='use shard="tensors"'):
        apply_steps(optimizer, tree, [0])
    assert optimizer.step.item() == 0


def test_random_numbers_of_the_owner_count_where_tensors_are_dealt_out(world):
    mx.random.seed(world.rank)
    optimizer = distributed(world, Noisy(0.5), shard="tensors")
    tree = {"a": mx.ones((3, 2)), "b": mx.ones(3)}
    optimizer.init(tree)
    tree = apply_steps(optimizer, tree, [0])
    assert world.identical(tree)
    assert optimizer.step.item() == 1


class Whole(optim.SGD):
    """Steps whole trees, and returns them in another shape or dtype."""

    def __init__(self, change=lambda new: new):
        super().__init__(1.0)
        self.change = change

    def apply_gradients(self, gradients, parameters):
        new = super().apply_gradients(gradients, parameters)
        return tree_map(self.change, new)


def step_whole(world, optimizer, **options):
    wrapped = mlxdist.DistributedOptimizer(optimizer, world=world, **options)
    tree = {"w": mx.array([8.0, 8.0], mx.bfloat16)}
    wrapped.init(tree)
    return wrapped.apply_gradients({"w": mx.array([3.0, 4.0], mx.bfloat16)}, tree)


def test_gradients_of_whole_trees_are_clipped(world):
    new = step_whole(world, Whole(), max_norm=2.5)
    assert new["w"].tolist() == [6.5, 6.0]


def test_whole_trees_come_back_in_their_dtype(world):
    new = step_whole(world, Whole(lambda new: new.astype(mx.float32)))
    assert new["w"].dtype == mx.bfloat16


def test_whole_trees_of_another_shape_are_refused(world):
    with pytest.raises(ValueError, match=r"Whole returned \[2, 1\] as the new w"):
        step_whole(world, Whole(lambda new: new[:, None]))
