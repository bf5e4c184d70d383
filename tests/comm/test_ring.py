"""Reduce-scatter over MLX's ring, with MPI as the control plane."""

import itertools
import threading
import time

import mlx.core as mx
import numpy as np
import pytest

import mlxdist
from mlxdist.launcher.data_plane import DataPlane
from mlxdist.world.data_plane import connect
from mlxdist.world.finalize import keep_alive
from mlxdist.world.world import World
from tests.support.buckets import (
    bucket_of_blocks,
    bucket_of_owners,
    contribution,
    flat_bucket,
    known_weights,
    values_of,
)
from tests.support.examples import assert_same_bits, distributed, each_shard

pytestmark = pytest.mark.mpi(min_size=2)


@pytest.fixture(scope="module")
def ring(world):
    """The same ranks, with their data over the ring."""
    group = connect("ring", world.control, DataPlane(), one_host=True)
    keep_alive(group)
    with World(group, "ring", world.duplicate(), mpi_group=world.group) as result:
        yield result


def scattered(world, values, bucket, weights=None):
    """This rank's span of the mean."""
    known = known_weights(world, weights)
    parts = contribution(world.native, values, known)
    return world.native.start_reduce_scatter(parts, bucket, known)


@pytest.mark.parametrize("size", [0, 1, 2, 3, 7, 1000, 4099])
@pytest.mark.parametrize(
    "make_bucket", [flat_bucket, bucket_of_blocks, bucket_of_owners]
)
def test_ring_reduce_scatter_then_all_gather_is_the_weighted_mean(
    make_bucket, size, ring
):
    bucket = make_bucket(ring, size)
    values = [
        mx.array(np.random.default_rng(rank).integers(-9, 9, bucket.size), mx.float32)
        for rank in range(ring.size)
    ]
    weights = [float(rank % 3) + 1 for rank in range(ring.size)]
    mean = sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)
    start, stop = bucket.span(ring.rank)
    before = ring.native.traffic.bytes_sent
    span = scattered(ring, values[ring.rank], bucket, weights).finish()
    assert_same_bits(span, mean[start:stop])
    sent = ring.native.traffic.bytes_sent - before
    if ring.size > 2 or bucket.owners is not None:
        assert sent == 4 * (bucket.size - (stop - start))
    assert sent == ring.native.reduce_scatter_bytes(bucket, 4, pairwise=False)
    assert_same_bits(ring.native.start_all_gather([span], bucket).finish(), mean)


def test_ring_adds_each_span_from_the_rank_behind_its_owner_on(ring):
    """The sum depends on the order, and so the same bits come out of each run."""
    bucket = flat_bucket(ring, 1000)
    values = [
        np.random.default_rng(rank).standard_normal(1000).astype(np.float32)
        for rank in range(ring.size)
    ]
    order = [(ring.rank + 1 + step) % ring.size for step in range(ring.size)]
    *_, total = itertools.accumulate(values[rank] for rank in order)
    span = scattered(ring, mx.array(values[ring.rank]), bucket).finish()
    wanted = mx.array(total[slice(*bucket.span(ring.rank))]) / ring.size
    assert_same_bits(span, wanted)


def test_ring_collectives_of_all_kinds_under_way_at_once_are_kept_apart(ring):
    bucket, weights = flat_bucket(ring, 1003), known_weights(ring)
    start, stop = bucket.span(ring.rank)
    pending = []
    for value in range(8):
        array = mx.full((1003,), float(value))
        pending += [
            scattered(ring, array, bucket),
            ring.native.start_all_gather([array[start:stop]], bucket),
            scattered(ring, array, bucket),
            ring.native.start_all_reduce([array], bucket, weights, mx.float32),
        ]
        if value == 3:
            assert ring.mean(float(ring.rank)) == (ring.size - 1) / 2
    for index, collective in enumerate(pending):
        mean = float(index // 4)
        wanted = mean * ring.size if index % 4 == 3 else mean  # 3: over ring, a sum
        assert values_of(collective.finish()) <= {mean, wanted}


def test_ring_collectives_of_the_user_meet_none_of_ours(ring):
    """They go over the same sockets, started by one call of MLX or another."""
    bucket = flat_bucket(ring, 100_003)
    for value in range(10):
        before = mx.distributed.all_sum(mx.full((7,), value), group=ring.group)
        mx.async_eval(before)
        span = scattered(ring, mx.full((100_003,), float(value)), bucket).finish()
        if ring.rank == 0:  # its sends are late
            time.sleep(0.001)
        after = mx.distributed.all_sum(mx.full((7,), value + 1), group=ring.group)
        assert values_of(after) == {(value + 1) * ring.size}
        assert values_of(span) == {float(value)}
        assert values_of(before) == {value * ring.size}


@each_shard
def test_training_over_the_ring_gives_the_bits_of_the_host_transport(shard, ring):
    trees = []
    for transport in ("native", "host"):
        optimizer = distributed(ring, shard=shard, transport=transport)
        tree = {"a": mx.ones((33, 5)), "b": mx.ones(7), "c": mx.zeros((3, 1001))}
        optimizer.init(tree)
        for step in range(3):
            gradients = {
                name: mx.full(array.shape, float(ring.rank + step))
                for name, array in tree.items()
            }
            tree = optimizer.apply_gradients(gradients, tree)
        mx.eval(tree)
        trees.append(tree)
    assert_same_bits(*trees)


def test_ring_in_another_thread_goes_on_where_the_main_one_ended(ring):
    bucket, spans = flat_bucket(ring, 1003), []

    def reduce():
        spans.append(scattered(ring, mx.ones(1003), bucket).finish())
        mx.eval(spans)
        ring.barrier()

    reduce()
    thread = threading.Thread(target=reduce)
    thread.start()
    thread.join()
    reduce()
    assert [values_of(span) for span in spans] == [{1.0}] * 3


def test_ring_step_in_mx_compile_gives_the_mean(ring):
    """A receive can't be traced, and so all ranks reduce everything."""

    @mx.compile
    def average(gradients):
        return mlxdist.average_gradients(gradients, world=ring)

    mean = average({"w": mx.full((7,), float(ring.rank))})
    assert values_of(mean["w"]) == {(ring.size - 1) / 2}
