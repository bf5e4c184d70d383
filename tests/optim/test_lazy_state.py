"""No array of state holds the steps before it, though the user evaluates none of them.

A lazy average of an average keeps every step's parameters (horovod#1501).
"""

import mlx.core as mx
import mlx.optimizers as optim
import pytest
from mlx.utils import tree_flatten

from tests.support.examples import distributed, each_shard, each_transport

pytestmark = pytest.mark.mpi


class Counting(optim.SGD):
    """Keeps a sum of gradients and a count, which no parameter depends on."""

    elementwise = True

    def init_single(self, parameter, state):
        super().init_single(parameter, state)
        state["seen"] = {"sum": mx.zeros_like(parameter)}

    def apply_single(self, gradient, parameter, state):
        state["seen"]["sum"] = state["seen"]["sum"] + gradient
        return super().apply_single(gradient, parameter, state)


def growth(optimizer):
    """Return by how many bytes 12 updates grow the arrays, after the first 4.

    Twice, and the least: small results share blocks of memory, and a new block may be
    begun in one of the two.
    """
    tree = {"a": mx.ones((64, 60)), "b": mx.ones(61), "c": [mx.ones((3, 3))]}
    optimizer.init(tree)
    sizes = []
    for update in range(28):
        scale = mx.array(1.0 + update)
        grads = {
            "a": mx.ones((64, 60)) * scale,
            "b": mx.ones(61) * scale,
            "c": [mx.ones((3, 3)) * scale],
        }
        tree = optimizer.apply_gradients(grads, tree)
        mx.eval(tree)
        del grads, scale
        if update in (3, 15, 27):
            sizes.append(mx.get_active_memory())
    return min(sizes[1] - sizes[0], sizes[2] - sizes[1])


SLACK = 20_000  # bytes: a buffer of the transport comes and goes
OPTIONS = [
    {"ema_decay": 0.5, "master_dtype": mx.float32},
    {"ema_decay": 0.5, "accumulate": 2, "max_norm": 1.0},
    {"loss_scale": "dynamic", "max_norm": 1.0},
    {"reproducible": True, "ema_decay": 0.5},
]


@each_shard
@each_transport
def test_memory_of_ema_weights_does_not_grow(transport, shard, world):
    optimizer = distributed(world, shard=shard, transport=transport, ema_decay=0.5)
    assert growth(optimizer) <= SLACK


@pytest.mark.parametrize("options", OPTIONS, ids=["-".join(o) for o in OPTIONS])
def test_memory_of_updates_does_not_grow(options, world):
    optimizer = distributed(world, shard="elements", transport="host", **options)
    assert growth(optimizer) <= SLACK


@pytest.mark.parametrize("shard", [False, "elements"])
@pytest.mark.parametrize("make", [Counting, optim.AdaDelta])
def test_memory_of_a_users_state_does_not_grow(make, shard, world):
    assert growth(distributed(world, make(0.5), shard=shard)) <= SLACK


@pytest.mark.usefixtures("compiled_always")
def test_memory_of_compiled_updates_does_not_grow(world):
    assert growth(distributed(world, shard=True, ema_decay=0.5)) <= SLACK


def test_schedule_stepped_without_gradients_is_evaluated(world):
    optimizer = distributed(world, optim.SGD(lambda step: 0.5 / (1 + step)))
    optimizer.init({"w": mx.ones(3)})
    before = mx.get_active_memory()
    for _ in range(200):
        optimizer.apply_gradients({}, {})
    assert mx.get_active_memory() - before <= 64
    assert dict(tree_flatten(optimizer.state))["step"].item() == 200
