"""The loss scale: the same on all ranks, halved where gradients overflow."""

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import pytest

import mlxdist
from mlxdist.optim import loss_scale
from tests.support.examples import distributed_with_masters as distributed
from tests.support.examples import (
    each_shard,
    each_transport,
    largest_difference,
    loss,
    rank_batch,
    seeded_net,
    update,
)

pytestmark = pytest.mark.mpi


def update_scaled(model, optimizer, x, y):
    """Take a training step with the loss multiplied by the optimizer's scale."""

    def scaled_loss(model, x, y):
        return loss(model, x, y).astype(mx.float32) * optimizer.loss_scale

    _, grads = nn.value_and_grad(model, scaled_loss)(model, x, y)
    optimizer.update(model, grads)


@each_shard
@each_transport
@pytest.mark.parametrize("scale", ["dynamic", 512])
def test_loss_scale_on_a_scaled_loss_trains_the_same(scale, transport, shard, world):
    model, twin = seeded_net(5), seeded_net(5)
    options = {"shard": shard, "transport": transport, "max_norm": 0.5}
    optimizer = distributed(world, loss_scale=scale, **options)
    unscaled = distributed(world, **options)
    optimizer.init(model)
    unscaled.init(twin)
    for step in range(3):
        x, y = rank_batch(world, step)
        update_scaled(model, optimizer, x, y)
        update(twin, unscaled, x, y)
        norm = unscaled.grad_norm.item()
        assert optimizer.grad_norm.item() == pytest.approx(norm, rel=1e-4)
    assert largest_difference(model.parameters(), twin.parameters()) < 1e-5


def build_dynamic(world, **options):
    optimizer = distributed(world, optim.SGD(0.5), loss_scale="dynamic", **options)
    optimizer.init({"w": mx.ones(5, mx.float16)})
    return optimizer


@each_shard
def test_loss_scale_on_an_overflow_is_halved_and_the_step_skipped(shard, world):
    tree = {"w": mx.ones(5, mx.float16)}
    optimizer = build_dynamic(world, shard=shard)
    assert optimizer.loss_scale.item() == 65536
    small = 2.0**-20  # below the smallest of fp16 unless it is scaled
    for overflows, halvings in ((True, 1), (True, 2), (False, 2)):
        scale = optimizer.loss_scale.item()
        is_last = world.rank == world.size - 1
        value = float("inf") if overflows and is_last else small * scale
        tree = optimizer.apply_gradients({"w": mx.full((5,), value, mx.float16)}, tree)
        assert optimizer.loss_scale.item() == 65536 / 2**halvings
        assert optimizer.step.item() == (0 if overflows else 1)
    assert optimizer.skipped == 2
    master = optimizer.gather_state()["w"]["master"]
    assert master.tolist() == [1 - small / 2] * 5


def test_loss_scale_after_steps_without_an_overflow_doubles(world, monkeypatch):
    monkeypatch.setattr(loss_scale, "GROWS_AFTER", 2)
    tree = {"w": mx.ones(5)}
    optimizer = distributed(world, optim.SGD(0.5), loss_scale="dynamic")
    optimizer.init(tree)
    for _ in range(4):
        tree = optimizer.apply_gradients({"w": mx.ones(5)}, tree)
    assert optimizer.loss_scale.item() == 65536 * 4


def test_loss_scale_grows_to_2_to_the_24_and_no_further(monkeypatch):
    monkeypatch.setattr(loss_scale, "GROWS_AFTER", 1)
    scale = loss_scale.make_loss_scale("dynamic")
    values = []
    for _ in range(10):
        scale.stepped()
        values.append(scale.value)
    assert values == [2.0**k for k in range(17, 25)] + [2.0**24] * 2
    assert scale.overflowed()
    assert scale.value == 2.0**23


def test_loss_scale_counts_steps_from_the_last_overflow(monkeypatch):
    monkeypatch.setattr(loss_scale, "GROWS_AFTER", 3)
    scale = loss_scale.make_loss_scale("dynamic")
    scale.stepped()
    scale.stepped()
    assert scale.overflowed()
    values = []
    for _ in range(3):
        scale.stepped()
        values.append(scale.value)
    assert values == [2.0**15, 2.0**15, 2.0**16]


def test_loss_scale_and_its_count_of_steps_are_resumed(
    world, shared_folder, monkeypatch
):
    monkeypatch.setattr(loss_scale, "GROWS_AFTER", 3)
    tree, ones = {"w": mx.ones(5, mx.float16)}, {"w": mx.ones(5, mx.float16)}
    optimizer = build_dynamic(world)
    overflow = {"w": mx.full((5,), float("inf"), mx.float16)}
    tree = optimizer.apply_gradients(overflow, tree)
    for _ in range(2):
        tree = optimizer.apply_gradients(ones, tree)
    mlxdist.save_checkpoint(shared_folder, 2, tree, optimizer)
    resumed = build_dynamic(world)
    mlxdist.load_checkpoint(shared_folder, tree, resumed)
    assert resumed.loss_scale.item() == 32768
    resumed.apply_gradients(ones, tree)  # the third good step
    assert resumed.loss_scale.item() == 65536


def test_loss_scale_with_nan_at_any_scale_raises_at_1(world):
    tree = {"w": mx.ones(5)}
    optimizer = distributed(world, optim.SGD(0.5), loss_scale="dynamic")
    optimizer.init(tree)
    bad = {"w": mx.full((5,), float("nan"))}
    for _ in range(16):
        tree = optimizer.apply_gradients(bad, tree)
    with pytest.raises(mlxdist.NonFiniteError, match="w has 5 of 5"):
        optimizer.apply_gradients(bad, tree)
    assert optimizer.skipped == 16
    assert optimizer.loss_scale.item() == 1
