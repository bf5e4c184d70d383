"""Bytes on the wire: what all ranks send together is what all of them need."""

import pytest

from mlxdist.layout import traffic
from mlxdist.layout.sharding import make_plan
from tests.support.plans import make_entry


@pytest.fixture(params=[("elements", 1), ("elements", 3), ("tensors", 4)], ids=str)
def bucket(request):
    strategy, ranks = request.param
    entries = [make_entry("a", (7,), "float32"), make_entry("b", (3,), "float32")]
    plan = make_plan(entries, ranks, strategy=strategy, bucket_size=1000)
    return plan.buckets[0]


def test_reduce_scatter_sends_each_rank_the_others_shares(bucket):
    ranks = range(bucket.ranks)
    sent = [traffic.reduce_scatter_bytes(bucket, rank, 4) for rank in ranks]
    assert sum(sent) == (bucket.ranks - 1) * 10 * 4
    start, stop = bucket.span(0)
    assert sent[0] == (10 - (stop - start)) * 4


def test_all_gather_sends_a_ranks_share_to_each_other_rank(bucket):
    ranks = range(bucket.ranks)
    sent = [traffic.all_gather_bytes(bucket, rank, 2) for rank in ranks]
    assert sum(sent) == (bucket.ranks - 1) * 10 * 2
    padded = traffic.padded_all_gather_bytes(bucket, 2)
    assert padded == max(sent)


@pytest.mark.parametrize(("ranks", "nbytes"), [(1, 0), (2, 800), (4, 1200)])
def test_all_reduce_is_twice_the_part_of_the_other_ranks(ranks, nbytes):
    assert traffic.all_reduce_bytes(800, ranks) == nbytes
    assert traffic.gather_whole_bytes(800, ranks) == (ranks - 1) * 800
