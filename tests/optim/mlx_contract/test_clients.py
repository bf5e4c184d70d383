"""Loops of programs that train with MLX, with their optimizer wrapped.

The steps are those of mlx-lm's trainer and of mflux's trainer, and the optimizers do
what those of mlx-optimizers do, as far as they touch an optimizer.
"""

import random
from functools import partial

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import pytest
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from mlxdist.comm.agreement import MismatchError
from tests.support.examples import (
    assert_same_bits,
    distributed,
    each_shard,
    largest_difference,
    loss_and_gradients,
    rank_batch,
    seeded_net,
)
from tests.support.mlx_contract import ones_around

pytestmark = [
    pytest.mark.mpi,
    pytest.mark.filterwarnings("ignore:optimizer.init"),
]


def lm_step(model, optimizer, micro_batches):
    """Return the compiled step of mlx-lm: gradients come in, are added, go out."""
    state = [model.state, optimizer.state, mx.random.state]

    @partial(mx.compile, inputs=state, outputs=state)
    def step(x, y, before, do_update):
        loss, grads = loss_and_gradients(model, x, y)
        if before is not None:
            grads = tree_map(mx.add, grads, before)
        if do_update:
            grads = nn.average_gradients(grads)
            if micro_batches > 1:
                grads = tree_map(lambda leaf: leaf / micro_batches, grads)
            optimizer.update(model, grads)
            grads = None
        return loss, grads

    return step, state


def lm_train(world, model, optimizer, micro_batches):
    step, state = lm_step(model, optimizer, micro_batches)
    total = None
    for index in range(4):
        x, y = rank_batch(world, index)
        loss, total = step(x, y, total, (index + 1) % micro_batches == 0)
        mx.eval(state, loss, total)
    return model.parameters()


@pytest.mark.parametrize("begun", [False, True], ids=["no init", "init"])
@pytest.mark.parametrize("micro_batches", [1, 2])
@each_shard
def test_step_of_mlx_lm_trains_as_with_mlx(shard, micro_batches, begun, world):
    model, twin = seeded_net(0), seeded_net(0)
    optimizer = distributed(world, optim.AdamW(1e-2), shard=shard)
    if begun:
        optimizer.init(model)
    trained = lm_train(world, model, optimizer, micro_batches)
    expected = lm_train(world, twin, optim.AdamW(1e-2), micro_batches)
    assert largest_difference(trained, expected) < 1e-5
    assert world.identical(trained)


@each_shard
def test_state_offloaded_to_a_file_between_steps_continues(shard, world, tmp_path):
    path = str(tmp_path / f"offload{world.rank}.safetensors")
    model, twin = seeded_net(0), seeded_net(0)
    optimizers = [distributed(world, optim.Adam(1e-2), shard=shard) for _ in range(2)]
    for index in range(3):
        for net, optimizer in zip([model, twin], optimizers, strict=True):
            _, grads = loss_and_gradients(net, *rank_batch(world, index))
            grads, _ = optim.clip_grad_norm(grads, 1.0)
            optimizer.update(model=net, gradients=grads)
            mx.eval(net.parameters(), optimizer.state)
        mx.save_safetensors(path, dict(tree_flatten(optimizers[0].state)))
        optimizers[0].state = []
        assert optimizers[0].state == []
        optimizers[0].state = tree_unflatten(list(mx.load(path).items()))
    assert_same_bits(model.parameters(), twin.parameters())


@each_shard
@pytest.mark.mpi(min_size=2)
def test_state_that_is_still_offloaded_is_refused_on_all_ranks(shard, world):
    tree = {"w": mx.ones(7)}
    optimizer = distributed(world, optim.Adam(1e-2), shard=shard)
    tree = optimizer.apply_gradients(ones_around(tree, world), tree)
    if world.is_root:
        optimizer.state = []
    else:
        optimizer.state = optimizer.state
    with pytest.raises(MismatchError, match=r"rank 0: .* list; it must be a dict"):
        optimizer.apply_gradients(ones_around(tree, world), tree)
    optimizer.apply_gradients(ones_around(tree, world), tree)  # the state is back
    assert optimizer.step.item() == 2


class Drawing(optim.Optimizer):
    """Draws in a schedule and keeps lists of arrays, as Kron of mlx-optimizers does."""

    def __init__(self, seed):
        super().__init__()
        self._numbers = random.Random(seed)
        self.draws = []
        self._maybe_schedule("learning_rate", self._rate)

    def _rate(self, step):
        self.draws.append(int(step.item()))
        return mx.array(self._numbers.random())

    def init_single(self, parameter, state):
        state["factors"] = [mx.ones_like(parameter), mx.zeros_like(parameter)]
        state["rules"] = ("ab", ["b,a", "a,b"], None)
        state["count"] = 0

    def apply_single(self, gradient, parameter, state):
        for index, factor in enumerate(state["factors"]):
            state["factors"][index] = factor + gradient
        state["count"] += 1
        return parameter - self.learning_rate * state["factors"][0] / state["count"]


def test_schedules_are_called_as_often_as_by_mlx_on_one_rank(world):
    alone = world.split(world.rank)
    tree = {"a": mx.ones((3, 2)), "b": [mx.ones(5)]}
    reference, inner = Drawing(7), Drawing(7)
    optimizer, expected = distributed(alone, inner), tree
    for _ in range(3):
        ones = tree_map(mx.ones_like, tree)
        tree = optimizer.apply_gradients(ones, tree)
        expected = reference.apply_gradients(ones, expected)
    assert inner.draws == reference.draws
    assert_same_bits(tree, expected)


@pytest.mark.parametrize("shard", [False, "tensors"])
def test_state_of_lists_texts_and_counts_trains_on_all_ranks(shard, world):
    tree = {"a": mx.ones((3, 2)), "b": [mx.ones(5)]}
    inner = Drawing(7)
    optimizer = distributed(world, inner, shard=shard)
    for _ in range(3):
        tree = optimizer.apply_gradients(ones_around(tree, world), tree)
    assert world.identical(tree)
    assert optimizer.gather_state()["a"]["count"] == 3
