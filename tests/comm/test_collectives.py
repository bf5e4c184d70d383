"""The contract of collectives, on both transports."""

import mlx.core as mx
import numpy as np
import pytest

from mlxdist.comm import agree
from tests.support.buckets import (
    bucket_of_blocks,
    bucket_of_one_large_owner,
    bucket_of_owners,
    contribution,
    flat_bucket,
    known_weights,
    values_of,
)
from tests.support.examples import assert_same_bits

pytestmark = pytest.mark.mpi
DTYPES = [mx.float32, mx.float16, mx.bfloat16]
MAKE_BUCKET = pytest.mark.parametrize("make_bucket", [flat_bucket, bucket_of_owners])


@pytest.fixture(params=["native", "host"])
def comm(request, world):
    return world.native if request.param == "native" else world.host_transport


@pytest.mark.usefixtures("message_limits")
@pytest.mark.parametrize("size", [0, 1, 2, 3, 7, 1000, 4099])
@MAKE_BUCKET
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_reduce_scatter_then_all_gather_is_the_weighted_mean(
    dtype, make_bucket, size, comm, world
):
    bucket = make_bucket(world, size)
    values = [
        mx.array(np.random.default_rng(rank).integers(-9, 9, bucket.size)).astype(dtype)
        for rank in range(world.size)
    ]
    weights = [float(rank % 3) + 1 for rank in range(world.size)]
    total = sum(v.astype(mx.float32) * w for v, w in zip(values, weights, strict=True))
    mean = total / sum(weights)
    start, stop = bucket.span(world.rank)
    local = values[world.rank]
    if comm is world.native:
        local = local.astype(mx.float32)
    known = known_weights(world, weights)
    shard = comm.start_reduce_scatter(
        contribution(comm, local, known), bucket, known
    ).finish()
    assert shard.dtype == mx.float32
    assert_same_bits(shard, mean[start:stop])
    full = comm.start_all_gather([shard.astype(dtype)], bucket).finish()
    assert_same_bits(full, mean.astype(dtype))


@pytest.mark.usefixtures("message_limits")
@pytest.mark.parametrize(
    "make_bucket", [flat_bucket, bucket_of_owners, bucket_of_one_large_owner]
)
def test_all_gather_keeps_negative_zero_and_nan(make_bucket, comm, world):
    special = mx.array([-0.0, 0.0, float("nan"), float("-inf"), 1e-45] * 40)
    bucket = make_bucket(world, 190)
    start, stop = bucket.span(world.rank)
    values = special[: bucket.size]
    full = comm.start_all_gather([values[start:stop]], bucket).finish()
    assert_same_bits(full, values)


def test_reduce_scatters_under_way_at_once_are_kept_apart(comm, world):
    bucket, weights = flat_bucket(world, 1000), known_weights(world)
    pending = [
        comm.start_reduce_scatter([mx.full((1000,), float(i))], bucket, weights)
        for i in range(6)
    ]
    for i, collective in enumerate(pending):
        assert values_of(collective.finish()) <= {float(i)}


def test_collectives_that_nobody_finishes_leave_the_next_ones_unmixed(comm, world):
    """As after an error that all ranks catch."""
    bucket, weights = flat_bucket(world, 1000), known_weights(world)
    start, stop = bucket.span(world.rank)
    for value in (1.0, 2.0):
        array = mx.full((1000,), value)
        comm.start_reduce_scatter([array], bucket, weights)
        comm.start_all_reduce([array], bucket, weights, mx.float32)
        comm.start_all_gather([array[start:stop]], bucket)
    agree(world.control, "the next call")
    nine = mx.full((1000,), 9.0)
    mean = comm.start_all_reduce([nine], bucket, weights, mx.float32).finish()
    assert values_of(mean) == {9.0}
    assert world.mean(3.0) == 3.0


@pytest.mark.parametrize("length", [0, 1, 3, 5000])
def test_all_gather_bytes_of_any_length_gives_those_of_each_rank(length, comm, world):
    data = bytes([world.rank]) * (length * world.rank)
    every = comm.all_gather_bytes(data)
    assert every == [bytes([r]) * (length * r) for r in range(world.size)]


def test_all_gather_words_keeps_64_bits(comm, world):
    words = np.array([2**64 - 1 - world.rank, world.rank], np.uint64)
    every = comm.all_gather_words(words)
    assert every.tolist() == [[2**64 - 1 - r, r] for r in range(world.size)]


def test_sum_scalar_adds_the_numbers_of_all_ranks(comm, world):
    total = comm.sum_scalar(mx.array(world.rank + 0.5))
    assert total.item() == sum(r + 0.5 for r in range(world.size))


@pytest.mark.usefixtures("message_limits")
def test_broadcast_gives_the_roots_bits_and_leaves_the_callers_arrays(comm, world):
    root = world.size - 1
    local = mx.array([-0.0, float(world.rank), float("nan")] * 100)
    mx.eval(local)
    before = mx.array(np.array(local))
    sent = comm.broadcast(local, root)
    assert_same_bits(sent, mx.array([-0.0, float(root), float("nan")] * 100))
    assert_same_bits(local, before)


def test_broadcast_over_the_host_transport_counts_what_the_root_sends(world):
    comm, root = world.host_transport, world.size - 1
    before = comm.traffic.bytes_sent, comm.traffic.collectives
    comm.broadcast(mx.zeros(7), root)
    nbytes = 28 if world.rank == root else 0
    assert comm.traffic.bytes_sent == before[0] + nbytes
    assert comm.traffic.collectives == before[1] + 1


@pytest.mark.usefixtures("message_limits")
@pytest.mark.parametrize("make", [bucket_of_one_large_owner, bucket_of_blocks])
def test_reduce_scatter_of_spans_of_unequal_length_is_the_mean(make, comm, world):
    bucket = make(world, 199)
    local = mx.arange(float(bucket.size)) * (world.rank + 1)
    pending = comm.start_reduce_scatter([local], bucket, known_weights(world))
    start, stop = bucket.span(world.rank)
    ranks = sum(range(1, world.size + 1))
    mean = mx.arange(float(bucket.size)) * ranks / world.size
    assert_same_bits(pending.finish(), mean[start:stop])
    full = comm.start_all_gather([mean[start:stop]], bucket).finish()
    assert_same_bits(full, mean)
