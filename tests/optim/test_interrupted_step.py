"""Ctrl-C inside of update(): the step is whole, or refused until it is mended.

composer#2461: a checkpoint of parameters of two steps.
"""

import signal

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import pytest

import mlxdist
from mlxdist.optim import compilation
from tests.support.examples import apply_steps, distributed

pytestmark = pytest.mark.mpi


class Torn(nn.Module):
    """Raises an error when the parameter `b` is replaced."""

    def __init__(self):
        super().__init__()
        self._fails = False
        self.a, self.b, self.c = mx.ones(6), mx.ones(7), mx.ones(8)

    def __setitem__(self, key, value):
        if key == "b" and self._fails:
            raise KeyboardInterrupt
        super().__setitem__(key, value)


@pytest.fixture
def started(monkeypatch, world):
    """A model, its optimizer, and gradients of ones, after one step."""
    model = Torn()
    monkeypatch.setattr(compilation, "COMPILED_FROM", 0)
    optimizer = distributed(world, optim.SGD(1.0), transport="host", bucket_size=16)
    optimizer.init(model)
    grads = {name: mx.ones_like(model[name]) for name in "abc"}
    optimizer.update(model, grads)
    return model, optimizer, grads


def update_in_part(model, optimizer, grads):
    """Take a step that is interrupted on all ranks while it replaces parameters."""
    model._fails = True
    with pytest.raises(KeyboardInterrupt):
        optimizer.update(model, grads)
    model._fails = False


def test_step_taken_in_part_is_refused_until_init(started, world, shared_folder):
    model, optimizer, grads = started
    update_in_part(model, optimizer, grads)
    remedy = r"load_checkpoint\(\), or call optimizer\.init\(model\)"
    with pytest.raises(mlxdist.MismatchError, match=remedy):
        optimizer.update(model, grads)
    with pytest.raises(mlxdist.MismatchError, match=remedy):
        mlxdist.save_checkpoint(shared_folder, 1, model, optimizer)
    optimizer.init(model)
    optimizer.update(model, grads)
    mlxdist.save_checkpoint(shared_folder, 2, model, optimizer)
    assert world.identical(model)
    assert optimizer.step.item() == 3  # that step counts: a part of it was taken


def test_checkpoint_mends_a_step_taken_in_part(started, shared_folder):
    model, optimizer, grads = started
    mlxdist.save_checkpoint(shared_folder, 1, model, optimizer)
    update_in_part(model, optimizer, grads)
    mlxdist.load_checkpoint(shared_folder, model, optimizer)
    optimizer.update(model, grads)
    assert [model[name][0].item() for name in "abc"] == [-1, -1, -1]


class Pressed(optim.SGD):
    """Presses Ctrl-C in the middle of a step, so many times."""

    elementwise = True
    times = 1

    def apply_single(self, gradient, parameter, state):
        for _ in range(self.times):
            signal.raise_signal(signal.SIGINT)
        self.times = 0
        return super().apply_single(gradient, parameter, state)


@pytest.mark.parametrize("shard", [False, "elements"])
def test_ctrl_c_interrupts_after_the_step(shard, world):
    optimizer = distributed(world, Pressed(1.0), shard=shard, bucket_size=16)
    model = Torn()
    optimizer.init(model)
    with pytest.raises(KeyboardInterrupt):
        optimizer.update(model, {name: mx.ones_like(model[name]) for name in "abc"})
    assert [model[name][0].item() for name in "abc"] == [0, 0, 0]
    assert optimizer.step.item() == 1
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_second_ctrl_c_interrupts_at_once(world):
    inner = Pressed(1.0)
    inner.times = 2
    optimizer = distributed(world, inner)
    tree = {"w": mx.ones(3)}
    optimizer.init(tree)
    with pytest.raises(KeyboardInterrupt):
        apply_steps(optimizer, tree, [0])
    assert optimizer.step.item() == 0
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
