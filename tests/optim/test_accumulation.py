"""Micro-batches: accumulate=K and no_sync(), weighted, clipped, scheduled."""

from functools import partial

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_map

import mlxdist
from mlxdist import MismatchError
from tests.support import examples
from tests.support.examples import (
    Net,
    assert_same_bits,
    batch,
    gradients,
    largest_difference,
    loss,
    mean_of,
    parameters,
)

pytestmark = pytest.mark.mpi
SHARDS = [False, "elements", "tensors"]
wrap = partial(examples.distributed, bucket_size=256)


def mean_over_rows(model, x, y, rows):
    """The loss and gradients of some rows; zeros for none, as a rank may have."""
    if not rows.size:
        return tree_map(mx.zeros_like, model.trainable_parameters())
    return nn.value_and_grad(model, loss)(model, x[rows], y[rows])[1]


def uneven(step, ranks, micro_batches):
    """Rows of each micro-batch of each rank, of any number, one rank without any."""
    numbers = np.random.default_rng(step)
    sizes = numbers.integers(0, 7, ranks * micro_batches)
    sizes[-1] = 0
    sizes[0] = 3
    cuts = np.split(np.arange(sizes.sum()), np.cumsum(sizes)[:-1])
    parts = [mx.array(cut.astype(np.int32)) for cut in cuts]
    own = [parts[r * micro_batches : (r + 1) * micro_batches] for r in range(ranks)]
    return int(sizes.sum()), own


@pytest.mark.parametrize("shard", SHARDS)
@pytest.mark.parametrize("transport", ["native", "host"])
@pytest.mark.parametrize("micro_batches", [1, 3])
def test_uneven_micro_batches_are_one_batch(shard, transport, micro_batches, world):
    """Equal to one process on the concatenated batch, clipped and scheduled."""
    mx.random.seed(5)
    model, twin = Net(), Net()
    twin.update(model.parameters())
    schedule = optim.linear_schedule(0.2, 0.01, 6)
    ours = wrap(
        world,
        optim.SGD(schedule, momentum=0.9),
        shard=shard,
        transport=transport,
        max_norm=0.5,
        accumulate=micro_batches,
    )
    plain = optim.SGD(schedule, momentum=0.9)
    ours.init(model)
    for step in range(5):
        rows, own = uneven(step, world.size, micro_batches)
        x, y = batch(step, rows)
        for part in own[world.rank]:
            ours.update(model, mean_over_rows(model, x, y, part), weight=part.size)
        _, full = nn.value_and_grad(twin, loss)(twin, x, y)
        full, norm = optim.clip_grad_norm(full, 0.5)
        plain.update(twin, full)
        assert ours.grad_norm.item() == pytest.approx(norm.item(), rel=1e-5)
        assert ours.learning_rate.item() == plain.learning_rate.item()
    assert ours.step.item() == 5
    assert largest_difference(model.parameters(), twin.parameters()) < 1e-6
    assert world.identical(model)


@pytest.mark.parametrize("shard", SHARDS)
@pytest.mark.parametrize("transport", ["native", "host"])
def test_no_sync_sends_nothing_and_then_all(shard, transport, world):
    ours = wrap(world, optim.SGD(0.5), shard=shard, transport=transport)
    own = start = parameters()
    ours.init(own)
    wire = world.native if transport == "native" else world.host_transport
    every = []
    with ours.no_sync():
        for step in range(3):
            sent = wire.traffic.bytes_sent, world.host_transport.traffic.bytes_sent
            grads = [gradients(own, step, r) for r in range(world.size)]
            every += grads
            own = ours.apply_gradients(grads[world.rank], own)
            assert sent == (
                wire.traffic.bytes_sent,
                world.host_transport.traffic.bytes_sent,
            )
            assert_same_bits(own, start)
    assert ours.step.item() == 0
    grads = [gradients(own, 3, r) for r in range(world.size)]
    own = ours.apply_gradients(grads[world.rank], own)
    wanted = optim.SGD(0.5).apply_gradients(mean_of([*every, *grads]), start)
    assert ours.step.item() == 1
    assert_same_bits(own, wanted)


@pytest.mark.parametrize("transport", ["native", "host"])
def test_sums_of_16_bit_gradients_are_float32(transport, world):
    """256 + 1 + 1 is 256 in bfloat16."""
    own = {"w": mx.zeros(3, mx.bfloat16)}
    ours = wrap(world, optim.SGD(1.0), accumulate=3, transport=transport, shard=True)
    ours.init(own)
    for value in (256.0, 1.0, 1.0):
        own = ours.apply_gradients({"w": mx.full((3,), value, mx.bfloat16)}, own)
    assert own["w"].tolist() == [-86.0] * 3


def test_a_micro_batch_without_weight_may_be_nan(world):
    own = {"w": mx.zeros(3)}
    ours = wrap(world, optim.SGD(1.0), accumulate=2)
    ours.init(own)
    own = ours.apply_gradients({"w": mx.full((3,), float("nan"))}, own, weight=0)
    own = ours.apply_gradients({"w": mx.ones(3)}, own, weight=2)
    assert own["w"].tolist() == [-1.0] * 3


def test_a_wrong_micro_batch_is_refused_on_all_ranks(world):
    own = {"w": mx.zeros(3)}
    ours = wrap(world, optim.SGD(1.0), accumulate=2)
    ours.init(own)
    wrong = {"w": mx.ones(4 if world.rank == world.size - 1 else 3)}

    def both():
        ours.apply_gradients(wrong, own)
        ours.apply_gradients({"w": mx.ones(3)}, own)

    with pytest.raises(MismatchError, match=r"micro-batch 1: the gradient of w"):
        both()
    # It begins anew, on all ranks.
    for _ in range(2):
        result = ours.apply_gradients({"w": mx.ones(3)}, own)
    assert result["w"].tolist() == [-1.0] * 3


@pytest.mark.mpi(min_size=2)
def test_ranks_with_other_numbers_of_micro_batches_are_told(world):
    own = {"w": mx.zeros(3)}
    ours = wrap(world, optim.SGD(1.0))
    ours.init(own)
    with ours.no_sync():
        for _ in range(1 + world.rank % 2):
            ours.apply_gradients({"w": mx.ones(3)}, own)
    with pytest.raises(MismatchError, match="2 micro-batches before"):
        ours.apply_gradients({"w": mx.ones(3)}, own)


def test_a_sum_that_is_not_finite_is_skipped_whole(world):
    own = {"w": mx.zeros(3)}
    ours = wrap(world, optim.SGD(1.0), accumulate=2, skip_nonfinite=True)
    ours.init(own)
    for value in (float("inf"), 1.0, 2.0, 4.0):
        bad = value if world.rank == world.size - 1 else 1.0
        own = ours.apply_gradients({"w": mx.full((3,), bad)}, own)
    others = world.size - 1
    assert ours.skipped == 1
    assert own["w"][0].item() == pytest.approx(-(6 + 2 * others) / (2 * world.size))


def test_accumulating_inside_compile_is_refused(world):
    ours = wrap(world, optim.SGD(1.0), accumulate=2)
    own = {"w": mx.zeros(4)}
    ours.init(own)
    step = mx.compile(lambda grads: ours.apply_gradients(grads, own))
    with pytest.raises(ValueError, match="compile what computes loss and gradients"):
        step({"w": mx.ones(4)})


@pytest.mark.parametrize("shard", SHARDS)
def test_save_between_micro_batches_is_refused_on_all_ranks(
    shard, world, shared_folder
):
    own = {"w": mx.zeros(3)}
    ours = wrap(world, optim.SGD(1.0), shard=shard, accumulate=2)
    ours.init(own)
    ours.apply_gradients({"w": mx.ones(3)}, own)
    with pytest.raises(MismatchError, match="after the step's last update"):
        mlxdist.save_checkpoint(shared_folder, 1, own, ours)
    own = ours.apply_gradients({"w": mx.ones(3)}, own)
    mlxdist.save_checkpoint(shared_folder, 1, own, ours)


@pytest.mark.mpi(min_size=2)
def test_save_between_micro_batches_of_some_ranks_is_refused_on_all(
    world, shared_folder
):
    own = {"w": mx.zeros(3)}
    ours = wrap(world, optim.SGD(1.0), accumulate=2)
    ours.init(own)
    if world.is_root:
        ours.apply_gradients({"w": mx.ones(3)}, own)
    with pytest.raises(MismatchError, match=r"(?s)rank 0: .*last update.*: ready"):
        mlxdist.save_checkpoint(shared_folder, 1, own, ours)
