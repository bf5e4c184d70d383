"""accumulate_sharded=True: sums of micro-batches are kept as this rank's shares."""

import math

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import pytest

import mlxdist
from tests.support.bad_arrays import array_of_a_thread_that_ended, inverse_of_zeros
from tests.support.examples import (
    apply_steps,
    assert_same_bits,
    distributed,
    each_transport,
    full_like,
    gradients,
    linear_layers,
    loss,
    parameters,
    rank_batch,
    seeded_net,
)

pytestmark = pytest.mark.mpi


@each_transport
@pytest.mark.parametrize("shard", ["elements", "tensors"])
@pytest.mark.parametrize("options", [{}, {"max_norm": 1e30, "ema_decay": 0.5}], ids=str)
def test_sharded_sums_have_the_bits_of_whole_sums(options, shard, transport, world):
    options = {"shard": shard, "transport": transport, "bucket_size": 64, **options}
    options["accumulate"] = 4
    tree = twin = parameters()
    optimizer = distributed(world, accumulate_sharded=True, **options)
    reference = distributed(world, **options)
    tree = apply_steps(optimizer, tree, range(8), world.rank)
    twin = apply_steps(reference, twin, range(8), world.rank)
    assert optimizer.step.item() == 2
    assert_same_bits(tree, twin)
    assert_same_bits(optimizer.gather_state(), reference.gather_state())


def test_sharded_sums_of_weighted_micro_batches_are_a_weighted_mean(world):
    """Also where the ranks' weights of one micro-batch are all 0."""
    tree = {"w": mx.zeros(13), "more": mx.zeros((3, 5))}
    optimizer = distributed(
        world, optim.SGD(1.0), shard=True, accumulate=3, accumulate_sharded=True
    )
    weights = [[1.0 + world.rank, 0.0, 2.0]] * 2
    total = 2.0 * world.size + sum(range(1, world.size + 1))
    for step in weights:
        for number, weight in enumerate(step):
            value = math.nan if weight == 0 else float(number)
            grads = full_like(tree, value)
            tree = optimizer.apply_gradients(grads, tree, weight)
    expected = -2 * (2.0 * 2 * world.size) / total
    assert mx.allclose(tree["w"], mx.array(expected)).item()
    for _ in range(2):
        optimizer.apply_gradients(full_like(tree, 1.0), tree, 0)
    with pytest.raises(mlxdist.MismatchError, match="weight 0"):
        optimizer.apply_gradients(full_like(tree, 1.0), tree, 0)


def test_sharded_sums_take_what_no_sync_added_up_whole(world):
    tree = twin = parameters()
    optimizer = distributed(world, shard=True, accumulate=3, accumulate_sharded=True)
    reference = distributed(world, shard=True, accumulate=3)
    optimizer.init(tree)
    transports = (world.native, world.host_transport)
    before = [comm.traffic.bytes_sent for comm in transports]
    with optimizer.no_sync():
        tree = apply_steps(optimizer, tree, [0], world.rank)
    assert [comm.traffic.bytes_sent for comm in transports] == before
    tree = apply_steps(optimizer, tree, [1, 2], world.rank)
    twin = apply_steps(reference, twin, range(3), world.rank)
    assert optimizer.step.item() == 1
    assert_same_bits(tree, twin)


def test_sharded_sums_of_minimize_train_as_whole_sums(world):
    models = [seeded_net(2), seeded_net(2)]
    optimizers = [
        distributed(world, shard=True, accumulate=2, accumulate_sharded=sharded)
        for sharded in (True, False)
    ]
    for optimizer, model in zip(optimizers, models, strict=True):
        optimizer.init(model)
        for step in range(4):
            optimizer.minimize(loss, model, *rank_batch(world, step))
    for one, other in zip(
        models[0].layers[0].weight, models[1].layers[0].weight, strict=True
    ):
        assert mx.allclose(one, other, atol=1e-5).item()


@pytest.mark.mpi(min_size=2)
@pytest.mark.fails_in_mlx
@pytest.mark.parametrize("failing", [array_of_a_thread_that_ended, inverse_of_zeros])
def test_sharded_sums_of_a_rank_that_fails_begin_anew_on_all_ranks(failing, world):
    model = linear_layers()
    optimizer = distributed(
        world,
        optim.SGD(0.5),
        shard=True,
        accumulate=3,
        accumulate_sharded=True,
        bucket_size=8,
    )
    optimizer.init(model)
    before = model.parameters()
    grads = gradients(model.trainable_parameters(), 0, world.rank)
    optimizer.update(model, grads)
    bad = nn.Module.trainable_parameters(model)
    if world.is_root:
        bad["layers"][0]["weight"] = failing()
    failed = None
    try:
        optimizer.update(model, bad)
    except (RuntimeError, mlxdist.MismatchError) as error:
        failed = error
    assert failed is not None or not world.is_root
    if not isinstance(failed, mlxdist.MismatchError):
        with pytest.raises(mlxdist.MismatchError, match=r"Stream|factorization"):
            optimizer.update(model, grads)
    assert_same_bits(model.parameters(), before)
    for _ in range(3):
        optimizer.update(model, grads)
    assert optimizer.step.item() == 1
    assert world.identical(model)


def test_sharded_sums_with_replicated_state_are_refused(world):
    with pytest.raises(ValueError, match="use shard=True"):
        distributed(world, accumulate=2, accumulate_sharded=True)
    with pytest.raises(ValueError, match="use one of them"):
        distributed(
            world, shard=True, accumulate=2, accumulate_sharded=True, reproducible=True
        )
