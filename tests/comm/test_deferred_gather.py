"""Gathers behind the next forward pass: groups, layouts of rows, bounds of waits."""

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxdist.arrays import device
from mlxdist.comm import deferred_gather
from mlxdist.comm.deferred_gather import (
    MOST_RANKS,
    DeferredGathers,
    RowLayout,
    make_groups,
    most_groups,
    seconds_left,
)
from mlxdist.comm.peer_streams import PeerStreams
from mlxdist.comm.wire import Wire
from mlxdist.layout.sharding import make_plan
from mlxdist.world.groups import split_group
from tests.support.plans import make_entry

SHAPES = [(7, 3), (1,), (0,), (40,), (5, 5), (2, 2, 2), (33,), (11,)]


def plan_of(ranks, strategy, dtypes=("float32", "bfloat16")):
    entries = [
        make_entry(f"p{i}", shape, dtypes[i % len(dtypes)])
        for i, shape in enumerate(SHAPES)
    ]
    return make_plan(entries, ranks, strategy=strategy, bucket_size=100)


@pytest.mark.parametrize(
    ("ranks", "groups"),
    [(2, 6), (3, 6), (4, 4), (5, 3), (6, 2), (MOST_RANKS, 2), (MOST_RANKS + 1, 0)],
)
def test_most_groups_fit_into_the_queue_of_mlx(ranks, groups):
    assert most_groups(ranks) == groups


def test_groups_are_about_equal_and_half_as_large_at_both_ends():
    assert [len(group) for group in make_groups([1] * 100, 6)] == [10, *[20] * 4, 10]
    assert [len(group) for group in make_groups([1] * 100, 2)] == [50, 50]
    assert make_groups([5], 6) == [range(1)]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=30), st.integers(1, 6))
def test_groups_have_each_bucket_once_and_are_not_too_many(nbytes, most):
    groups = make_groups(nbytes, most)
    assert [index for group in groups for index in group] == list(range(len(nbytes)))
    assert len(groups) <= most
    assert all(groups)


@pytest.mark.parametrize("strategy", ["elements", "tensors"])
@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_rows_have_each_byte_of_the_buckets_once_and_aligned(ranks, strategy):
    plan = plan_of(ranks, strategy)
    layout = RowLayout.of(range(len(plan.buckets)), plan.buckets)
    used = [set() for _ in range(ranks)]
    for index, bucket in enumerate(plan.buckets):
        for entry, parts in zip(bucket.entries, layout.slices[index], strict=True):
            assert sum(stop - start for _, start, stop in parts) == entry.nbytes
            for rank, start, stop in parts:
                assert not used[rank] & set(range(start, stop))
                used[rank] |= set(range(start, stop))
        assert all(start % 8 == 0 for start in layout.starts[index])
    for rank, size in enumerate(layout.sizes):
        assert max(used[rank], default=-1) < size


@pytest.mark.parametrize(
    ("done", "total", "elapsed", "seconds"),
    [(0, 0, 1, 0), (0, 10, 1, float("inf")), (5, 10, 2, 2), (9, 10, 9, 1)],
)
def test_seconds_left_follow_the_rate_of_the_beginning(done, total, elapsed, seconds):
    assert seconds_left(done, total, elapsed) == seconds


@pytest.fixture
def streams(world, mpi_group):
    groups = [split_group(mpi_group, "mpi", 0) for _ in range(2)]
    return PeerStreams(groups, world.recorder)


@pytest.fixture
def low_limit(monkeypatch):
    monkeypatch.setattr("mlxdist.comm.peer_streams.MAX_BYTES", 40)


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("limit", [None, "low_limit"])
@pytest.mark.parametrize("strategy", ["elements", "tensors"])
def test_gather_gives_each_entry_whole_in_the_order_of_use(
    strategy, limit, streams, world, request
):
    if limit:
        request.getfixturevalue(limit)
    plan = plan_of(world.size, strategy)
    comm = world.transport("host", sharded=True)
    over = Wire(plan, comm, deferred=DeferredGathers(plan.buckets, comm, streams))
    assert list(over.order) == list(range(len(plan.buckets)))[::-1]
    before, whole = comm.traffic.bytes_sent, []
    gather = over.gather()
    for index in over.order:
        pieces = [
            mx.full(
                piece.shape(strategy),
                10.0 * index + world.rank,
                dtype=getattr(mx, piece.entry.dtype),
            )
            for piece in over.pieces[index]
        ]
        whole += gather.push(index, over.stepped_chunk(index, pieces))
    whole += gather.rest()
    sent = over.gather() and comm.traffic.bytes_sent - before
    assert [bucket for bucket, _ in whole] == [plan.buckets[i] for i in over.order]
    for index, (bucket, arrays) in zip(over.order, whole, strict=True):
        expected = {entry.path: [0.0] * entry.size for entry in bucket.entries}
        for rank in range(world.size):
            for piece in bucket.pieces(rank):
                size = piece.stop - piece.start
                numbers = [10.0 * index + rank] * size
                expected[piece.entry.path][piece.start : piece.stop] = numbers
        for entry, array in zip(bucket.entries, arrays, strict=True):
            assert tuple(array.shape) == entry.shape
            assert array.reshape(-1).tolist() == expected[entry.path]
    assert sent == DeferredGathers(plan.buckets, comm, streams).expected().bytes_sent


@pytest.mark.mpi(min_size=2)
def test_rest_waits_on_the_host_where_the_device_must_not(streams, world, monkeypatch):
    monkeypatch.setattr(device, "longest_wait", lambda: 0.0)
    waited = []
    monkeypatch.setattr(
        deferred_gather, "seconds_left", lambda *at: waited.append(at) or 1
    )
    plan = plan_of(world.size, "elements")
    comm = world.transport("host", sharded=True)
    gathers = DeferredGathers(plan.buckets, comm, streams)
    gather, over = gathers.start(), Wire(plan, comm)
    for index in gathers.order:
        pieces = [
            mx.zeros(piece.shape("elements"), getattr(mx, piece.entry.dtype))
            for piece in over.pieces[index]
        ]
        gather.push(index, over.stepped_chunk(index, pieces))
    assert gather.rest() == []
    done = [at[0] for at in waited]
    assert done == sorted(set(done))
    assert len(done) == len(gathers.layouts)
