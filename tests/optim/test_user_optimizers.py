"""Optimizers that users write: what they may do, sharded and not."""

import functools

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import pytest
from mlx.utils import tree_map

import mlxdist
from mlxdist.optim import optimizer
from tests.support.examples import assert_same_bits

pytestmark = pytest.mark.mpi
SHARDS = [False, "tensors"]


class Late(optim.Optimizer):
    """Makes its state at the first step, and not before."""

    elementwise = True

    def init_single(self, parameter, state):
        pass

    def apply_single(self, gradient, parameter, state):
        state["m"] = 0.5 * state.get("m", mx.zeros_like(gradient)) + gradient
        return parameter - 0.125 * state["m"]


class Matrices(optim.Optimizer):
    """Takes matrices alone, and draws from MLX's random numbers."""

    def init_single(self, parameter, state):
        state["rows"] = mx.zeros((1, parameter.shape[1]))

    def apply_single(self, gradient, parameter, state):
        return parameter - 0.125 * gradient + mx.random.normal(parameter.shape)


def tree():
    return {"a": mx.arange(24.0).reshape(4, 6), "b": mx.ones((3, 5))}


def step(ours, own, number):
    return ours.apply_gradients(tree_map(lambda x: mx.full(x.shape, number), own), own)


@pytest.mark.parametrize("shard", [*SHARDS, "elements"])
def test_state_made_at_the_first_step_is_resumed(shard, world, shared_folder):
    ours = mlxdist.DistributedOptimizer(Late(), shard=shard, world=world)
    own = tree()
    ours.init(own)
    for number in (1.0, 2.0):
        own = step(ours, own, number)
    mlxdist.save_checkpoint(shared_folder, 2, own, ours)
    other, again = (
        tree(),
        mlxdist.DistributedOptimizer(Late(), shard=shard, world=world),
    )
    again.init(other)
    mlxdist.load_checkpoint(shared_folder, other, again)
    assert_same_bits(step(again, other, 3.0), step(ours, own, 3.0))


@pytest.mark.parametrize("shard", SHARDS)
def test_nothing_of_theirs_runs_to_warm_up_a_compiler(shard, world, monkeypatch):
    monkeypatch.setattr(optimizer, "COMPILED_FROM", 0)
    mx.random.seed(3)
    before = mx.random.state[0].tolist()
    ours = mlxdist.DistributedOptimizer(Matrices(), shard=shard, world=world)
    ours.init(tree())
    assert mx.random.state[0].tolist() == before


def test_a_compiled_step_keeps_its_state_when_init_is_called_again(world):
    mx.random.seed(0)
    model = nn.Linear(3, 2)
    ours = mlxdist.DistributedOptimizer(
        optim.AdamW(1e-2), shard=True, world=world, transport="native"
    )
    ours.init(model)
    state = [model.state, ours.state]

    @functools.partial(mx.compile, inputs=state, outputs=state)
    def compiled(x):
        loss, grads = nn.value_and_grad(model, lambda m, x: m(x).sum())(model, x)
        ours.update(model, grads)
        return loss

    mx.eval(compiled(mx.ones((4, 3))), state)
    ours.init(model)
    mx.eval(compiled(mx.ones((4, 3))), state)
    assert ours.step.item() == 2


def test_the_norm_of_a_skipped_step_is_not_finite(world):
    ours = mlxdist.DistributedOptimizer(
        optim.SGD(0.5), world=world, max_norm=1.0, skip_nonfinite=True
    )
    own = tree()
    ours.init(own)
    ours.apply_gradients(tree_map(mx.ones_like, own), own)
    assert ours.grad_norm.item() == pytest.approx(39**0.5)
    bad = float("nan") if world.is_root else 1.0
    ours.apply_gradients(tree_map(lambda x: mx.full(x.shape, bad), own), own)
    assert (ours.skipped, mx.isfinite(ours.grad_norm).item()) == (1, False)
