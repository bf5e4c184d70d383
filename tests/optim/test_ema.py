"""EMA weights, and what freezing in mid-run keeps of them and of the masters."""

import mlx.core as mx
import mlx.optimizers as optim
import pytest
from mlx.utils import tree_flatten, tree_map

import mlxdist
from mlxdist import MismatchError
from tests.support.batch_norm import BatchNormNet, build, train
from tests.support.examples import (
    assert_same_bits,
    distributed,
    each_shard,
    each_transport,
    full_like,
    largest_difference,
    to_float32,
)

pytestmark = pytest.mark.mpi
DECAY = 0.75


def build_with_ema(world, masters=None, **options):
    mx.random.seed(3)
    model = BatchNormNet()
    if masters is not None:
        model.set_dtype(mx.bfloat16)
    optimizer = distributed(
        world,
        optim.SGD(0.5, momentum=0.5),
        master_dtype=masters,
        ema_decay=DECAY,
        bucket_size=64,
        **options,
    )
    optimizer.init(model)
    return model, optimizer


def take_step(model, optimizer, number):
    """Update with gradients that all are `number`."""
    optimizer.update(model, full_like(model.trainable_parameters(), float(number)))


@each_shard
@each_transport
@pytest.mark.parametrize("masters", [None, mx.float32], ids=str)
def test_ema_weights_are_the_decayed_mean_of_the_parameters(
    masters, transport, shard, world
):
    model, optimizer = build_with_ema(world, masters, shard=shard, transport=transport)
    twin = averages = to_float32(model.trainable_parameters())
    reference = optim.SGD(0.5, momentum=0.5)
    for number in range(3):
        take_step(model, optimizer, number)
        twin = reference.apply_gradients(full_like(twin, float(number)), twin)
        averages = tree_map(lambda a, p: DECAY * a + (1 - DECAY) * p, averages, twin)
    before = dict(tree_flatten(model.parameters()))
    with optimizer.averaged(model):
        ema = model.trainable_parameters()
        assert model.first.weight.dtype == before["first.weight"].dtype
        tolerance = 1e-6 if masters is None else 1e-2
        assert largest_difference(ema, averages) < tolerance
        assert world.identical(ema)
    after = dict(tree_flatten(model.parameters()))
    assert all(array is before[path] for path, array in after.items())


def test_ema_weights_in_place_refuse_other_calls(world, shared_folder):
    model, optimizer = build_with_ema(world)
    calls = {
        "update": lambda: take_step(model, optimizer, 3),
        "save": lambda: mlxdist.save_checkpoint(shared_folder, 3, model, optimizer),
        "load": lambda: mlxdist.load_checkpoint(shared_folder, model, optimizer),
        "call init": lambda: optimizer.init(model),
        "swap": lambda: optimizer.averaged(model).__enter__(),
    }
    with optimizer.averaged(model):
        for message, call in calls.items():
            with pytest.raises(ValueError, match=f"EMA weights in place: {message}"):
                call()
    take_step(model, optimizer, 3)


@each_shard
@pytest.mark.parametrize("masters", [None, mx.float32], ids=str)
def test_ema_weights_go_through_checkpoints(masters, shard, world, shared_folder):
    model, optimizer = build_with_ema(world, masters, shard=shard)
    for number in range(3):
        take_step(model, optimizer, number)
    mlxdist.save_checkpoint(shared_folder, 3, model, optimizer)
    other, resumed = build_with_ema(world.split(world.rank), masters, shard=shard)
    mlxdist.load_checkpoint(shared_folder, other, resumed)
    for number in (3, 4):
        with optimizer.averaged(model), resumed.averaged(other):
            assert_same_bits(other.trainable_parameters(), model.trainable_parameters())
        take_step(model, optimizer, number)
        take_step(other, resumed, number)


def test_ema_weights_go_out_of_place_after_an_error(world):
    model, optimizer = build_with_ema(world)
    take_step(model, optimizer, 1)
    before = tree_map(mx.array, model.parameters())
    evaluation = optimizer.averaged(model)
    evaluation.__enter__()
    assert not mx.array_equal(model.first.weight, before["first"]["weight"])
    assert not evaluation.__exit__(KeyError, KeyError(), None)
    assert_same_bits(model.parameters(), before)
    take_step(model, optimizer, 2)  # nothing is in place any more


def test_ema_weights_without_ema_decay_are_refused(world):
    model, optimizer = build(world)
    with pytest.raises(ValueError, match="pass ema_decay"), optimizer.averaged(model):
        pass


@each_shard
@each_transport
def test_init_again_after_freezing_keeps_masters_ema_and_moments(
    shard, transport, world
):
    """Of what stays; a layer that was frozen and is trained again begins anew."""
    model, optimizer = build(
        world,
        shard=shard,
        transport=transport,
        master_dtype=mx.float32,
        ema_decay=0.9,
        max_norm=1.0,
    )
    model.apply(lambda x: x.astype(mx.bfloat16) if x.dtype == mx.float32 else x)
    optimizer.init(model)
    train(model, optimizer, world, range(2))
    before = optimizer.gather_state()
    model.first.freeze()
    optimizer.init(model)
    frozen = optimizer.gather_state()
    assert not tree_flatten(frozen["first"])
    assert_same_bits(frozen["norm"], before["norm"])
    train(model, optimizer, world, range(2, 4))
    assert optimizer.step.item() == 4
    model.first.unfreeze()
    optimizer.init(model)
    after = optimizer.gather_state()
    expected = model.first.weight.astype(mx.float32)
    assert_same_bits(after["first"]["weight"]["master"], expected)
    assert before["norm"]["weight"].keys() == after["norm"]["weight"].keys()
    train(model, optimizer, world, range(4, 5))
    assert world.identical(model.trainable_parameters())


@pytest.mark.mpi(min_size=2)
@each_shard
@each_transport
def test_averaged_on_one_rank_only_is_refused_on_all(shard, transport, world):
    model, optimizer = build_with_ema(world, shard=shard, transport=transport)
    swap = optimizer.averaged(model).__enter__
    call = swap if world.rank == world.size - 1 else world.barrier
    with pytest.raises(MismatchError, match="not doing the same thing"):
        call()


def test_averaged_of_no_model_is_refused(world):
    _, optimizer = build_with_ema(world)
    with pytest.raises(ValueError, match="found a NoneType"):
        optimizer.averaged(None).__enter__()
