"""What a rank waits for: a rank that is late, or the wire."""

import pytest

from mlxdist.report.waiting import Waits
from tests.support.traces import rank_trace


def parts(*ranks):
    """Return the parts of rank 0's waits, without their steps."""
    return [(x.start, x.end, x.late) for x in Waits(ranks).of(0)]


def test_wait_is_for_the_last_rank_until_all_have_started():
    first = rank_trace(0, waits=[(1, 5)], collectives=[(1, 1, 5)], overlaps=True)
    second = rank_trace(1, collectives=[(1, 2, 5)], overlaps=True)
    third = rank_trace(2, collectives=[(1, 4, 5)], overlaps=True)
    assert parts(first, second, third) == [(1, 2, 2), (2, 4, 2), (4, 5, None)]


@pytest.mark.parametrize(
    ("overlaps", "expected"),
    [(False, [(1, 3, 1), (3, 5, None)]), (True, [(1, 5, None)])],
)
def test_rank_that_computes_is_late_unless_its_collectives_proceed(overlaps, expected):
    first = rank_trace(0, waits=[(1, 5)], collectives=[(1, 0, 5)], overlaps=overlaps)
    second = rank_trace(1, waits=[(3, 5)], collectives=[(1, 0, 5)], overlaps=overlaps)
    assert parts(first, second) == expected


def test_rank_that_computes_after_the_collective_is_complete_is_not_late():
    first = rank_trace(0, waits=[(1, 5)], collectives=[(1, 1, 5)])
    second = rank_trace(1, waits=[(1, 2)], collectives=[(1, 1, 2)])
    assert parts(first, second) == [(1, 5, None)]


def test_oldest_collective_that_is_not_complete_counts():
    first = rank_trace(
        0, waits=[(2, 8)], collectives=[(1, 0, 4), (2, 1, 8)], overlaps=True
    )
    second = rank_trace(1, collectives=[(1, 3, 4), (2, 7, 8)], overlaps=True)
    assert parts(first, second) == [(2, 3, 1), (3, 4, None), (4, 7, 1), (7, 8, None)]


def test_wait_without_a_collective_is_for_ranks_that_do_not_wait():
    first = rank_trace(0, waits=[(1, 5)], collectives=[(1, 7, 8)])
    second = rank_trace(1, waits=[(0, 2), (4, 6)], collectives=[(1, 7, 8)])
    assert parts(first, second) == [(1, 2, None), (2, 4, 1), (4, 5, None)]


@pytest.mark.parametrize("overlaps", [False, True])
def test_collective_without_an_end_counts_until_the_next_one(overlaps):
    options = {"collectives": [(1, 0, None), (2, 4, 6)], "overlaps": overlaps}
    first = rank_trace(0, waits=[(1, 6)], **options)
    second = rank_trace(1, waits=[(3, 6)], **options)
    assert parts(first, second) == [(1, 3, 1), (3, 4, None), (4, 6, None)]


def test_rank_that_has_no_event_of_the_collective_is_not_late():
    first = rank_trace(0, waits=[(1, 5)], collectives=[(9, 1, 5)])
    assert parts(first, rank_trace(1)) == [(1, 5, None)]


def test_waits_that_overlap_count_once():
    rank = rank_trace(0, waits=[(1, 4), (2, 3), (3, 6)])
    assert parts(rank) == [(1, 4, None), (4, 6, None)]


def test_rank_that_is_late_longest_is_named():
    first = rank_trace(0, waits=[(1, 5)])
    third = rank_trace(2, waits=[(0, 2), (3, 6)])
    expected = [(1, 2, 1), (2, 3, 1), (3, 5, 1)]
    assert parts(first, rank_trace(1), third) == expected
