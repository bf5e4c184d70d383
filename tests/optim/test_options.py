"""Which optimizers and options are taken, and which are refused."""

import math

import mlx.core as mx
import mlx.optimizers as optim
import pytest

import mlxdist
from mlxdist import MismatchError
from tests.support.examples import assert_same_bits, gradients
from tests.support.examples import distributed as wrap

pytestmark = pytest.mark.mpi
SHARDS = [False, "elements", "tensors"]


class UserSign(optim.Optimizer):
    """An optimizer that the package has never seen."""

    def __init__(self, learning_rate):
        super().__init__()
        self._maybe_schedule("learning_rate", learning_rate)

    def init_single(self, parameter, state):
        state["count"] = mx.array(0)
        state["nested"] = {"last": mx.zeros_like(parameter)}

    def apply_single(self, gradient, parameter, state):
        state["count"] = state["count"] + 1
        state["nested"]["last"] = gradient
        return parameter - self.learning_rate * mx.sign(gradient - gradient.mean())


class ElementwiseSign(UserSign):
    elementwise = True

    def apply_single(self, gradient, parameter, state):
        state["nested"]["last"] = gradient
        return parameter - self.learning_rate * mx.sign(gradient)


@pytest.mark.parametrize(
    ("kind", "strategy"), [(UserSign, "tensors"), (ElementwiseSign, "elements")]
)
def test_a_users_own_optimizer(kind, strategy, world):
    ours, plain = wrap(world, kind(0.1), shard=True), kind(0.1)
    own = twin = {"a": mx.ones((7, 3)), "b": {"c": mx.zeros(5)}}
    ours.init(own)
    plain.init(twin)
    assert ours.strategy == strategy
    for step in range(3):
        grads = gradients(own, step, 0)
        own = ours.apply_gradients(grads, own)
        twin = plain.apply_gradients(grads, twin)
    assert_same_bits(own, twin)
    assert_same_bits(ours.gather_state(), plain.state)


def test_a_subclass_of_a_known_class_is_not_trusted(world):
    class Changed(optim.Adam):
        pass

    assert wrap(world, Changed(0.1), shard=True).strategy == "tensors"
    with pytest.raises(ValueError, match="elementwise = True"):
        wrap(world, Changed(0.1), shard="elements")
    with pytest.raises(ValueError, match="Muon"):
        wrap(world, optim.Muon(0.1), shard="elements")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"shard": "rows"}, "shard is 'rows'"),
        ({"transport": "pigeon"}, "transport is 'pigeon'"),
        ({"max_norm": -1.0}, "max_norm is -1.0"),
        ({"max_norm": math.nan}, "max_norm is nan"),
        ({"wire_dtype": mx.bfloat16}, 'needs transport="host"'),
        ({"transport": "host", "reduce_dtype": mx.bfloat16}, "adds in float32"),
    ],
)
def test_options_that_cannot_be_are_refused(options, told, world):
    with pytest.raises(ValueError, match=told):
        wrap(world, **options)


def test_wrapping_twice_is_refused(world):
    with pytest.raises(ValueError, match="already"):
        wrap(world, wrap(world))


def test_what_cannot_be_trained_is_refused(world):
    with pytest.raises(MismatchError, match=r"w int32\[3\] can't be trained"):
        wrap(world).init({"w": mx.zeros(3, mx.int32)})
    with pytest.raises(ValueError, match=r"x is a float, not an mx\.array"):
        wrap(world).init({"x": 1.0})
    with pytest.raises(ValueError, match="a parameter is called 'step'"):
        wrap(world).init({"step": mx.zeros(3)})


def test_calls_before_init_say_so(world):
    for call in ("gather_state", "describe"):
        with pytest.raises(ValueError, match=r"optimizer\.init\(model\) first"):
            getattr(wrap(world), call)()
    with pytest.raises(ValueError, match="max_norm"):
        _ = wrap(world).grad_norm


def test_dicts_with_numbers_for_keys_are_refused(world):
    for tree in ({"0": mx.zeros(2)}, {"x": [{"7": mx.zeros(2)}]}):
        with pytest.raises(ValueError, match="is a number, which MLX reads as"):
            wrap(world).init(tree)


@pytest.mark.parametrize(
    ("optimizer", "options", "told"),
    [
        (None, {}, "the optimizer is None"),
        (optim.SGD, {}, "the optimizer is <class"),
        (optim.SGD(0.1), {"bucket_size": "1MB"}, "bucket_size is '1MB'"),
        (optim.SGD(0.1), {"check_every": -1}, "check_every is -1"),
        (optim.SGD(0.1), {"max_norm": "1"}, "max_norm is '1'"),
        (optim.SGD(0.1), {"reduce_dtype": mx.int32}, "reduce_dtype is"),
        (optim.SGD(0.1), {"transport": "host", "wire_dtype": mx.int8}, "wire_dtype is"),
    ],
)
def test_arguments_of_another_kind_are_refused(optimizer, options, told, world):
    with pytest.raises(ValueError, match=told):
        mlxdist.DistributedOptimizer(optimizer, world=world, **options)
