"""A wire: buckets in their order, and a bounded number of them in flight."""

import mlx.core as mx
import pytest

from mlxdist.comm import Wire, window
from mlxdist.layout.sharding import make_plan
from tests.support.buckets import known_weights
from tests.support.examples import each_transport
from tests.support.plans import make_entry

pytestmark = pytest.mark.mpi(min_size=2)
BUCKETS, SIZE = 8, 12


def wire_of_buckets(world, transport, strategy="replicated"):
    """Return a wire of `BUCKETS` buckets of one array each."""
    entries = [make_entry(f"p{i}", (SIZE,), "float32") for i in range(BUCKETS)]
    plan = make_plan(entries, world.size, strategy=strategy, bucket_size=4 * SIZE)
    assert len(plan.buckets) == BUCKETS
    return Wire(plan, world.transport(transport, sharded=plan.sharded))


def numbered(plan):
    """Return gradients that are the number of their bucket."""
    return {
        entry.path: mx.full(entry.shape, float(index))
        for index, bucket in enumerate(plan.buckets)
        for entry in bucket.entries
    }


@each_transport
@pytest.mark.parametrize("limit", [1, 3, 100])
def test_reduction_gives_the_buckets_in_order_and_starts_few_ahead(
    limit, transport, world, monkeypatch
):
    monkeypatch.setattr(window, "IN_FLIGHT", limit * 4 * SIZE)
    over = wire_of_buckets(world, transport)
    before = over.comm.traffic.collectives
    reduction = over.reduce(numbered(over.plan), known_weights(world))
    each = 2 if over.comm.adds_in_rank_order else 1  # collectives of a bucket
    for taken in range(BUCKETS):
        (mean,) = reduction.take(taken).pieces()
        assert mean.tolist() == [float(taken)] * SIZE
        started = (over.comm.traffic.collectives - before) // each
        assert started == min(BUCKETS, taken + limit + 1)


@each_transport
@pytest.mark.parametrize("limit", [1, 100])
@pytest.mark.parametrize("strategy", ["elements", "tensors"])
def test_gather_gives_each_bucket_once_and_whole(
    strategy, limit, transport, world, monkeypatch
):
    monkeypatch.setattr(window, "IN_FLIGHT", limit * 4 * SIZE)
    over = wire_of_buckets(world, transport, strategy)
    gather, whole = over.gather(), []
    for index, pieces in enumerate(over.pieces):
        arrays = [
            mx.full(piece.shape(strategy), index + 0.5 * world.rank) for piece in pieces
        ]
        whole += gather.push(index, over.stepped_chunk(index, arrays))
    whole += gather.rest()
    assert [bucket for bucket, _ in whole] == list(over.plan.buckets)
    for index, (bucket, (array,)) in enumerate(whole):
        expected = [0.0] * SIZE
        for rank in range(world.size):
            start, stop = bucket.span(rank)
            expected[start:stop] = [index + 0.5 * rank] * (stop - start)
        assert array.tolist() == expected
