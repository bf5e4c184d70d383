"""BatchNorm's running statistics and the like; averages of parameters; freezing."""

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import pytest
from mlx.utils import tree_flatten, tree_map

import mlxdist
from tests.support.examples import assert_same_bits, largest_difference

pytestmark = pytest.mark.mpi
SHARDS = [False, "elements", "tensors"]


class Normed(nn.Module):
    """With running statistics, a counter and a frozen layer."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.norm = nn.BatchNorm(6)
        self.fixed = nn.Linear(6, 6)
        self.calls = mx.array(0)
        self.freeze(keys=["calls"], recurse=False)
        self.fixed.freeze()

    def __call__(self, x):
        self.calls = self.calls + 1
        return self.fixed(self.norm(self.first(x)))


def value(model, x):
    return model(x).square().mean()


def rows(step, rank):
    return mx.random.normal((8, 4), key=mx.random.key(100 * step + rank)) + rank


def started(world, **options):
    mx.random.seed(world.rank)
    model = Normed()
    model.norm.running_mean = mx.full((6,), float(world.rank))
    ours = mlxdist.DistributedOptimizer(optim.SGD(0.1), world=world, **options)
    ours.init(model)
    return model, ours


def train(model, ours, world, steps, weight=None):
    for step in steps:
        _, grads = nn.value_and_grad(model, value)(model, rows(step, world.rank))
        ours.update(model, grads, weight=weight)


@pytest.mark.parametrize("shard", SHARDS)
@pytest.mark.parametrize("mode", ["mean", "root"])
def test_buffers_are_kept_in_step(mode, shard, world):
    model, ours = started(world, sync_buffers=mode, shard=shard)
    assert world.identical(model)
    assert mx.all(model.norm.running_mean == 0).item()  # the root's, at first
    fixed = model.fixed.weight
    every = []
    for rank in range(world.size):
        twin = Normed()
        twin.update(model.parameters())
        value(twin, rows(0, rank))
        every.append(twin.norm.running_mean)
    train(model, ours, world, range(1))
    wanted = every[0]
    if mode == "mean":
        wanted = sum(every) / world.size
    assert largest_difference({"x": model.norm.running_mean}, {"x": wanted}) < 1e-6
    assert world.identical(model)
    train(model, ours, world, range(1, 4))
    assert world.identical(model)
    assert model.calls.item() == 4
    assert model.calls.dtype == mx.int32
    assert model.fixed.weight is fixed  # what is frozen does not travel


def test_buffers_are_left_alone_and_are_no_drift(world, shared_folder):
    """Each rank's own, compared at each step or not; a checkpoint has the root's."""
    model, ours = started(world, check_every=1)
    train(model, ours, world, range(3))
    assert world.identical(model.trainable_parameters())
    assert world.identical(model) == (world.size == 1)
    mlxdist.save_checkpoint(shared_folder, 3, model, ours)
    root = world.broadcast(model.norm.running_mean)
    other, resumed = started(world)
    mlxdist.load_checkpoint(shared_folder, other, resumed)
    assert_same_bits({"x": other.norm.running_mean}, {"x": root})
    assert world.identical(other)


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("mode", ["mean", "root"])
def test_a_rank_without_a_batch_takes_the_others_buffers(mode, world):
    model, ours = started(world, sync_buffers=mode)
    last = world.rank == world.size - 1
    zeros = tree_map(mx.zeros_like, model.trainable_parameters())
    _, grads = (
        (None, zeros)
        if last
        else nn.value_and_grad(model, value)(model, rows(0, world.rank))
    )
    ours.update(model, grads, weight=0 if last else 8)
    assert world.identical(model)
    assert mx.any(model.norm.running_mean != 0).item()


def test_buffers_wait_for_the_end_of_a_step(world):
    model, ours = started(world, sync_buffers="mean", accumulate=2)
    train(model, ours, world, range(1))
    assert world.identical(model) == (world.size == 1)
    train(model, ours, world, range(1, 2))
    assert world.identical(model)


# -- averages


@pytest.mark.parametrize("shard", SHARDS)
@pytest.mark.parametrize("transport", ["native", "host"])
@pytest.mark.parametrize("masters", [None, mx.float32])
def test_averages(shard, transport, masters, world, shared_folder):
    def begun(part):
        mx.random.seed(3)
        model = Normed()
        if masters is not None:
            model.set_dtype(mx.bfloat16)
        ours = mlxdist.DistributedOptimizer(
            optim.SGD(0.5, momentum=0.5),
            shard=shard,
            transport=transport,
            master_dtype=masters,
            ema_decay=0.75,
            bucket_size=64,
            world=part,
        )
        ours.init(model)
        return model, ours

    def step(model, ours, number):
        grads = tree_map(
            lambda x: mx.full(x.shape, float(number), x.dtype),
            model.trainable_parameters(),
        )
        ours.update(model, grads)

    model, ours = begun(world)
    wide = tree_map(lambda x: x.astype(mx.float32), model.trainable_parameters())
    averages, plain = wide, optim.SGD(0.5, momentum=0.5)
    for number in range(3):
        step(model, ours, number)
        grads = tree_map(lambda x, number=number: mx.full(x.shape, number * 1.0), wide)
        wide = plain.apply_gradients(grads, wide)
        averages = tree_map(lambda a, p: 0.75 * a + 0.25 * p, averages, wide)
    now = dict(tree_flatten(model.parameters()))
    with ours.averaged(model):
        lent = model.trainable_parameters()
        assert model.first.weight.dtype == now["first.weight"].dtype
        tolerance = 1e-6 if masters is None else 1e-2
        assert largest_difference(lent, averages) < tolerance
        assert world.identical(lent)
        with pytest.raises(ValueError, match="averages in place: update"):
            step(model, ours, 3)
        with pytest.raises(ValueError, match="averages in place: save"):
            mlxdist.save_checkpoint(shared_folder, 3, model, ours)
        with pytest.raises(ValueError, match="averages in place: load"):
            mlxdist.load_checkpoint(shared_folder, model, ours)
        with pytest.raises(ValueError, match="averages in place: call init"):
            ours.init(model)
        nested = pytest.raises(ValueError, match="averages in place: lend")
        with nested, ours.averaged(model):
            pass
    assert all(array is now[path] for path, array in tree_flatten(model.parameters()))

    mlxdist.save_checkpoint(shared_folder, 3, model, ours)
    other, resumed = begun(world.split(world.rank))
    mlxdist.load_checkpoint(shared_folder, other, resumed)
    with resumed.averaged(other):
        assert_same_bits(other.trainable_parameters(), lent)
    step(model, ours, 3)
    step(other, resumed, 3)
    with ours.averaged(model), resumed.averaged(other):
        assert_same_bits(other.trainable_parameters(), model.trainable_parameters())


def test_averages_that_are_not_kept_are_refused(world):
    model, ours = started(world)
    with pytest.raises(ValueError, match="pass ema_decay"), ours.averaged(model):
        pass


@pytest.mark.parametrize("transport", ["native", "host"])
@pytest.mark.parametrize("shard", SHARDS)
def test_freezing_in_the_middle_keeps_the_state_of_the_rest(shard, transport, world):
    """Masters, averages and moments stay; what was frozen begins anew."""
    model, ours = started(
        world,
        shard=shard,
        transport=transport,
        master_dtype=mx.float32,
        ema_decay=0.9,
        max_norm=1.0,
    )
    model.apply(lambda x: x.astype(mx.bfloat16) if x.dtype == mx.float32 else x)
    ours.init(model)
    train(model, ours, world, range(2))
    before = ours.gather_state()
    model.first.freeze()
    ours.init(model)
    train(model, ours, world, range(2, 4))
    assert "first" not in ours.gather_state()
    assert ours.step.item() == 4
    model.first.unfreeze()
    ours.init(model)
    after = ours.gather_state()
    wanted = model.first.weight.astype(mx.float32)
    assert_same_bits({"x": after["first"]["weight"]["master"]}, {"x": wanted})
    assert before["norm"]["weight"].keys() == after["norm"]["weight"].keys()
    train(model, ours, world, range(4, 5))
    assert world.identical(model.trainable_parameters())
