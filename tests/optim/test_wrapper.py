"""Attributes, copies and text of a DistributedOptimizer."""

import copy
import pickle

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import pytest

import mlxdist
from tests.support.examples import apply_steps, distributed, each_shard

pytestmark = pytest.mark.mpi


class TwoRates(optim.SGD):
    """With a second learning rate as a property, as public packages have."""

    def __init__(self):
        super().__init__(0.5)
        self._maybe_schedule("second_rate", 0.25)

    @property
    def second_rate(self):
        return self.state["second_rate"]

    @second_rate.setter
    def second_rate(self, value):
        self.state["second_rate"] = mx.array(value)


def test_attribute_of_the_wrapped_optimizer_is_read_and_set_on_it(world):
    inner = optim.AdamW(0.5, betas=[0.9, 0.99])
    optimizer = distributed(world, inner)
    assert optimizer.betas is inner.betas
    assert hasattr(optimizer, "weight_decay")
    optimizer.weight_decay = 0.125
    assert inner.weight_decay == 0.125
    assert "weight_decay" not in vars(optimizer)
    assert {"weight_decay", "gather_state"} <= set(dir(optimizer))


def test_property_of_the_wrapped_class_is_set_in_its_state(world):
    optimizer = distributed(world, TwoRates())
    optimizer.second_rate = 0.125
    assert optimizer.state["second_rate"].item() == 0.125
    assert optimizer.second_rate.item() == 0.125


def test_attribute_of_neither_raises_with_both_names(world):
    optimizer = distributed(world)
    assert not hasattr(optimizer, "momentum")
    with pytest.raises(AttributeError, match=r"DistributedOptimizer .* 'momentum'.*Ad"):
        optimizer.momentum  # noqa: B018


def test_attribute_that_no_optimizer_has_stays_on_the_wrapper(world):
    inner = optim.AdamW(0.5)
    optimizer = distributed(world, inner)
    optimizer.note = "mine"
    assert optimizer.note == "mine"
    assert not hasattr(inner, "note")
    del optimizer.note
    assert not hasattr(optimizer, "note")


def test_options_are_read_on_the_wrapper(world):
    optimizer = distributed(world, max_norm=2.0, accumulate=3)
    assert (optimizer.max_norm, optimizer.accumulate) == (2.0, 3)


def test_apply_single_assigned_to_the_wrapper_is_the_one_that_steps(world):
    optimizer = distributed(world, optim.SGD(0.5))
    optimizer.apply_single = lambda gradient, parameter, state: parameter + 1
    stepped = optimizer.apply_gradients({"w": mx.ones(3)}, {"w": mx.ones(3)})
    assert stepped["w"].tolist() == [2, 2, 2]


def test_method_assigned_to_the_wrapper_may_call_the_one_before(world):
    optimizer = distributed(world, optim.SGD(0.5))
    before = optimizer.apply_single
    optimizer.apply_single = lambda gradient, *others: before(gradient / 2, *others)
    stepped = optimizer.apply_gradients({"w": mx.ones(3)}, {"w": mx.ones(3)})
    assert stepped["w"].tolist() == [0.75] * 3


def test_attribute_named_as_an_option_is_set_on_the_wrapped_optimizer_itself(world):
    inner = optim.SGD(0.5)
    inner.max_norm = 1.0
    optimizer = distributed(world, inner)
    with pytest.raises(AttributeError, match=r"set optimizer\.optimizer\.max_norm"):
        optimizer.max_norm = 2.0
    optimizer.optimizer.max_norm = 2.0
    assert inner.max_norm == 2.0


def test_subclass_with_more_attributes_trains(world):
    class Logging(mlxdist.DistributedOptimizer):
        def __init__(self, *args, **options):
            self.updates = 0
            super().__init__(*args, **options)
            self.last = None

        def update(self, model, gradients, weight=None):
            self.updates += 1
            self.last = weight
            super().update(model, gradients, weight)

    optimizer = Logging(optim.SGD(1.0), world=world)
    model = nn.Linear(2, 1, bias=False)
    optimizer.init(model)
    before = model.weight
    optimizer.update(model, {"weight": mx.ones((1, 2))}, weight=2)
    assert (optimizer.updates, optimizer.last) == (1, 2)
    assert mx.array_equal(model.weight, before - 1)
    assert not hasattr(optimizer.optimizer, "last")


def test_repr_names_the_wrapped_class_and_the_rank(world):
    text = repr(distributed(world, optim.Lion(0.1), shard=True))
    assert text == (
        f"<DistributedOptimizer of Lion, elements, rank {world.rank} of {world.size}>"
    )


@each_shard
def test_copy_and_pickle_are_refused_with_the_remedy(shard, world):
    optimizer = distributed(world, shard=shard)
    optimizer.init({"w": mx.ones(5)})
    for attempt in (copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match=r"gather_state\(\) and .*load_state"):
            attempt(optimizer)
    assert copy.copy(optimizer).state is optimizer.state


# -- one optimizer in several wrappers


def test_optimizer_wrapped_again_leaves_the_first_wrapper_refused(world):
    inner, tree = optim.SGD(0.5), {"w": mx.ones(5)}
    first, second = distributed(world, inner), distributed(world, inner)
    tree = apply_steps(second, tree, [0])
    with pytest.raises(mlxdist.MismatchError, match="wrapped again"):
        apply_steps(first, tree, [1])
    apply_steps(second, tree, [1])
    assert second.step.item() == 2


def test_distributed_optimizer_in_a_multi_optimizer_is_refused(world):
    parts = [distributed(world), optim.SGD(0.5)]
    with pytest.raises(ValueError, match="DistributedOptimizer already"):
        distributed(world, optim.MultiOptimizer(parts, [lambda path, x: True]))


@pytest.mark.parametrize("is_nested", [False, True])
@pytest.mark.parametrize("name", ["optimizers", "filters"])
def test_part_of_a_multi_optimizer_replaced_later_is_refused(name, is_nested, world):
    multi = optim.MultiOptimizer(
        [optim.SGD(0.5), optim.SGD(0.25)], [lambda path, x: path == "a"]
    )
    outer = optim.MultiOptimizer([multi, optim.SGD(0.5)], [lambda path, x: True])
    optimizer = distributed(world, outer if is_nested else multi)
    tree = apply_steps(optimizer, {"a": mx.ones(2), "b": mx.ones(2)}, [0])
    getattr(multi, name)[0] = optim.SGD(1.0) if name == "optimizers" else bool
    with pytest.raises(mlxdist.MismatchError, match="wrap it again"):
        apply_steps(optimizer, tree, [1])
