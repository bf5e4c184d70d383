"""The loss scale: agreed by all ranks, halved where gradients overflow."""

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import pytest

import mlxdist
from mlxdist.optim import loss_scale
from tests.support.examples import Net, batch, largest_difference, loss
from tests.support.examples import distributed_with_masters as wrap

pytestmark = pytest.mark.mpi
SHARDS = [False, "elements", "tensors"]
TRANSPORTS = ["native", "host"]


def scaled(model, ours, x, y):
    def scaled_loss(m, x, y):
        return loss(m, x, y).astype(mx.float32) * ours.loss_scale

    return nn.value_and_grad(model, scaled_loss)(model, x, y)[1]


@pytest.mark.parametrize("shard", SHARDS)
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("option", ["dynamic", 512])
def test_a_scaled_loss_trains_the_same(shard, transport, option, world):
    mx.random.seed(5)
    model, twin = Net(), Net()
    twin.update(model.parameters())
    options = {"shard": shard, "transport": transport, "max_norm": 0.5}
    ours = wrap(world, loss_scale=option, **options)
    other = wrap(world, **options)
    ours.init(model)
    other.init(twin)
    for step in range(3):
        x, y = batch(step * world.size + world.rank, 4)
        ours.update(model, scaled(model, ours, x, y))
        other.update(twin, nn.value_and_grad(twin, loss)(twin, x, y)[1])
        assert ours.grad_norm.item() == pytest.approx(other.grad_norm.item(), rel=1e-4)
    assert largest_difference(model.parameters(), twin.parameters()) < 1e-5


@pytest.mark.parametrize("shard", SHARDS)
def test_an_overflow_skips_the_step_on_all_ranks(shard, world, shared_folder):
    own = {"w": mx.ones(5, mx.float16)}
    ours = wrap(world, optim.SGD(0.5), shard=shard, loss_scale="dynamic")
    ours.init(own)
    assert ours.loss_scale.item() == 65536
    small = 2.0**-20  # nothing in fp16 once it is added up with others, but scaled
    for bad, halvings in ((True, 1), (True, 2), (False, 2)):
        scale = ours.loss_scale.item()
        value = float("inf") if bad and world.rank == world.size - 1 else small * scale
        own = ours.apply_gradients({"w": mx.full((5,), value, mx.float16)}, own)
        assert ours.loss_scale.item() == 65536 / 2**halvings
        assert ours.step.item() == (0 if bad else 1)
    assert ours.skipped == 2
    master = ours.gather_state()["w"]["master"]
    assert master.tolist() == [1 - small / 2] * 5
    # It goes on from there.
    mlxdist.save_checkpoint(shared_folder, 1, own, ours)
    other = wrap(world, optim.SGD(0.5), shard=shard, loss_scale="dynamic")
    mlxdist.load_checkpoint(shared_folder, own, other)
    assert other.loss_scale.item() == 65536 / 4
    assert other._loss_scale.good == 1


def test_the_scale_grows_after_a_while(world, monkeypatch):
    monkeypatch.setattr(loss_scale, "GROWS_AFTER", 2)
    own = {"w": mx.ones(5)}
    ours = wrap(world, optim.SGD(0.5), loss_scale="dynamic")
    ours.init(own)
    for _ in range(4):
        own = ours.apply_gradients({"w": mx.ones(5)}, own)
    assert ours.loss_scale.item() == 65536 * 4


def test_nan_whatever_the_scale_is_told(world):
    own = {"w": mx.ones(5)}
    ours = wrap(world, optim.SGD(0.5), loss_scale="dynamic")
    ours.init(own)
    bad = {"w": mx.full((5,), float("nan"))}
    for _ in range(16):
        own = ours.apply_gradients(bad, own)
    with pytest.raises(mlxdist.NonFiniteError, match="w has 5 of 5"):
        ours.apply_gradients(bad, own)
    assert ours.skipped == 16
    assert ours.loss_scale.item() == 1
