"""Micro-batches: accumulate=K and no_sync(), weighted, clipped, scheduled."""

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
import pytest

import mlxdist
from mlxdist import MismatchError
from tests.support.examples import (
    assert_same_bits,
    batch,
    distributed,
    each_shard,
    each_transport,
    full_like,
    gradients_of_ranks,
    largest_difference,
    loss_and_gradients,
    mean_of,
    parameters,
    seeded_net,
)

pytestmark = pytest.mark.mpi


def gradients_of_rows(model, x, y, rows):
    """Return the gradients of some rows of a batch; zeros for none."""
    if not rows.size:
        return full_like(model.trainable_parameters(), 0)
    return loss_and_gradients(model, x[rows], y[rows])[1]


def split_rows(step, ranks, micro_batches):
    """Return the number of rows of a batch, and those of each micro-batch by rank.

    Micro-batches have 0 to 6 rows; the first has 3, and the last none.
    """
    sizes = np.random.default_rng(step).integers(0, 7, ranks * micro_batches)
    sizes[-1] = 0
    sizes[0] = 3
    cuts = np.split(np.arange(sizes.sum()), np.cumsum(sizes)[:-1])
    parts = [mx.array(cut.astype(np.int32)) for cut in cuts]
    by_rank = [
        parts[rank * micro_batches : (rank + 1) * micro_batches]
        for rank in range(ranks)
    ]
    return int(sizes.sum()), by_rank


@each_shard
@each_transport
@pytest.mark.parametrize("micro_batches", [1, 3])
def test_micro_batches_of_any_size_train_as_one_batch(
    micro_batches, transport, shard, world
):
    """Equal to one process on the concatenated batch, clipped and scheduled."""
    model, twin = seeded_net(5), seeded_net(5)
    schedule = optim.linear_schedule(0.2, 0.01, 6)
    optimizer = distributed(
        world,
        optim.SGD(schedule, momentum=0.9),
        shard=shard,
        transport=transport,
        bucket_size=256,
        max_norm=0.5,
        accumulate=micro_batches,
    )
    reference = optim.SGD(schedule, momentum=0.9)
    optimizer.init(model)
    for step in range(5):
        count, by_rank = split_rows(step, world.size, micro_batches)
        x, y = batch(step, count)
        for rows in by_rank[world.rank]:
            grads = gradients_of_rows(model, x, y, rows)
            optimizer.update(model, grads, weight=rows.size)
        _, grads = loss_and_gradients(twin, x, y)
        grads, norm = optim.clip_grad_norm(grads, 0.5)
        reference.update(twin, grads)
        assert optimizer.grad_norm.item() == pytest.approx(norm.item(), rel=1e-5)
        assert optimizer.learning_rate.item() == reference.learning_rate.item()
    assert optimizer.step.item() == 5
    assert largest_difference(model.parameters(), twin.parameters()) < 1e-6
    assert world.identical(model)


@each_shard
@each_transport
def test_no_sync_sends_nothing_until_the_next_update(shard, transport, world):
    optimizer = distributed(
        world, optim.SGD(0.5), shard=shard, transport=transport, bucket_size=256
    )
    tree = start = parameters()
    optimizer.init(tree)
    every = [gradients_of_ranks(tree, step, world.size) for step in range(4)]

    def bytes_sent():
        transports = (world.native, world.host_transport)
        return [comm.traffic.bytes_sent for comm in transports]

    before = bytes_sent()
    with optimizer.no_sync():
        for step in range(3):
            tree = optimizer.apply_gradients(every[step][world.rank], tree)
            assert_same_bits(tree, start)
    assert bytes_sent() == before
    assert optimizer.step.item() == 0
    tree = optimizer.apply_gradients(every[3][world.rank], tree)
    mean = mean_of([grads for step in every for grads in step])
    expected = optim.SGD(0.5).apply_gradients(mean, start)
    assert optimizer.step.item() == 1
    assert_same_bits(tree, expected)


def test_no_sync_ended_by_an_error_holds_no_longer(world):
    optimizer = distributed(world, optim.SGD(1.0))
    tree = {"w": mx.zeros(3)}
    optimizer.init(tree)

    def fail():
        with optimizer.no_sync():
            optimizer.apply_gradients({"w": mx.full((3,), 4.0)}, tree)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    tree = optimizer.apply_gradients({"w": mx.full((3,), 2.0)}, tree)
    assert optimizer.step.item() == 1
    assert tree["w"].tolist() == [-3.0] * 3


def test_no_sync_in_a_no_sync_holds_until_both_have_ended(world):
    optimizer = distributed(world, optim.SGD(1.0))
    tree = {"w": mx.zeros(3)}
    optimizer.init(tree)
    with optimizer.no_sync():
        with optimizer.no_sync():
            optimizer.apply_gradients({"w": mx.full((3,), 6.0)}, tree)
        optimizer.apply_gradients({"w": mx.full((3,), 3.0)}, tree)
        assert optimizer.step.item() == 0
    tree = optimizer.apply_gradients({"w": mx.zeros(3)}, tree)
    assert optimizer.step.item() == 1
    assert tree["w"].tolist() == [-3.0] * 3


@each_transport
def test_micro_batches_of_16_bits_are_added_in_float32(transport, world):
    """256 + 1 + 1 is 256 in bfloat16."""
    tree = {"w": mx.zeros(3, mx.bfloat16)}
    optimizer = distributed(
        world, optim.SGD(1.0), accumulate=3, transport=transport, shard=True
    )
    optimizer.init(tree)
    for value in (256.0, 1.0, 1.0):
        grads = {"w": mx.full((3,), value, mx.bfloat16)}
        tree = optimizer.apply_gradients(grads, tree)
    assert tree["w"].tolist() == [-86.0] * 3


def test_micro_batches_of_float64_keep_their_digits(world):
    with mx.stream(mx.cpu):
        one, more = mx.ones(3, mx.float64), mx.full((3,), 1 + 2.0**-40, mx.float64)
        tree = {"w": mx.zeros(3, mx.float64)}
        optimizer = distributed(
            world, optim.SGD(1.0), accumulate=2, transport="host", shard=True
        )
        optimizer.init(tree)
        for grad in (one, more):
            tree = optimizer.apply_gradients({"w": grad}, tree)
        assert tree["w"].tolist() == [-1 - 2.0**-41] * 3


def build_pairs(world, **options):
    """Return an optimizer that accumulates two micro-batches, and its parameters."""
    optimizer = distributed(world, optim.SGD(1.0), accumulate=2, **options)
    tree = {"w": mx.zeros(3)}
    optimizer.init(tree)
    return optimizer, tree


def test_micro_batch_of_weight_0_may_be_nan(world):
    optimizer, tree = build_pairs(world)
    bad = {"w": mx.full((3,), float("nan"))}
    tree = optimizer.apply_gradients(bad, tree, weight=0)
    tree = optimizer.apply_gradients({"w": mx.ones(3)}, tree, weight=2)
    assert tree["w"].tolist() == [-1.0] * 3


def test_micro_batch_of_another_shape_on_one_rank_is_refused_by_all(world):
    optimizer, tree = build_pairs(world)
    ones = {"w": mx.ones(3)}
    is_last = world.rank == world.size - 1

    def take_step(first):
        optimizer.apply_gradients(first, tree)
        return optimizer.apply_gradients(ones, tree)

    with pytest.raises(MismatchError, match=r"micro-batch 1: the gradient of w"):
        take_step({"w": mx.ones(4)} if is_last else ones)
    result = take_step(ones)
    assert result["w"].tolist() == [-1.0] * 3


@pytest.mark.mpi(min_size=2)
def test_micro_batches_of_another_number_on_one_rank_are_refused(world):
    tree = ones = {"w": mx.ones(3)}
    optimizer = distributed(world, optim.SGD(1.0))
    optimizer.init(tree)
    with optimizer.no_sync():
        for _ in range(1 + world.rank % 2):
            optimizer.apply_gradients(ones, tree)
    with pytest.raises(MismatchError, match="2 micro-batches before"):
        optimizer.apply_gradients(ones, tree)


@each_shard
def test_save_between_micro_batches_is_refused_on_all_ranks(
    shard, world, shared_folder
):
    optimizer, tree = build_pairs(world, shard=shard)
    optimizer.apply_gradients({"w": mx.ones(3)}, tree)
    with pytest.raises(MismatchError, match="after the step's last update"):
        mlxdist.save_checkpoint(shared_folder, 1, tree, optimizer)
    tree = optimizer.apply_gradients({"w": mx.ones(3)}, tree)
    mlxdist.save_checkpoint(shared_folder, 1, tree, optimizer)


@pytest.mark.mpi(min_size=2)
def test_save_between_micro_batches_of_one_rank_is_refused_on_all(world, shared_folder):
    optimizer, tree = build_pairs(world)
    if world.is_root:
        optimizer.apply_gradients({"w": mx.ones(3)}, tree)
    with pytest.raises(MismatchError, match=r"(?s)rank 0: .*last update.*: ready"):
        mlxdist.save_checkpoint(shared_folder, 1, tree, optimizer)
