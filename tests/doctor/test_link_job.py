"""doctor/link_job: the order in which pairs of ranks are measured."""

from itertools import combinations

import pytest

from mlxdist.doctor.link_job import pairings


@pytest.mark.parametrize("size", range(1, 10))
def test_pairings_have_each_pair_once_and_disjoint_rounds(size):
    rounds = list(pairings(size))
    pairs = sorted(pair for pairs in rounds for pair in pairs)
    assert pairs == list(combinations(range(size), 2))
    for pairs in rounds:
        ranks = [rank for pair in pairs for rank in pair]
        assert len(ranks) == len(set(ranks))
