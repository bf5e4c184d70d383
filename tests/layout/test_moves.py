"""Moves of an array's elements between ranks: each at most once, and no others."""

import pytest

from mlxdist.layout.moves import Move, find_moves


def test_elements_that_stay_are_not_sent():
    cut = {0: (0, 5), 1: (5, 10)}
    assert find_moves(cut, cut) == []


def test_a_shifted_cut_sends_only_what_gets_another_owner():
    has, wants = {0: (0, 5), 1: (5, 10)}, {0: (0, 3), 1: (3, 8), 2: (8, 10)}
    assert find_moves(has, wants) == [Move(0, 3, 5), Move(1, 8, 10)]


def test_elements_that_several_ranks_want_are_sent_once():
    assert find_moves({1: (0, 4)}, {0: (0, 4), 1: (0, 4), 2: (0, 4)}) == [Move(1, 0, 4)]


def test_a_rank_in_the_middle_gets_both_sides():
    has = {0: (0, 3), 1: (3, 6), 2: (6, 9)}
    assert find_moves(has, {1: (0, 9)}) == [Move(0, 0, 3), Move(2, 6, 9)]


def test_a_root_sends_no_more_than_it_has():
    has = {1: (5, 10), 0: (0, 5)}
    assert find_moves(has, {2: (0, 10)}) == [Move(1, 5, 10), Move(0, 0, 5)]


def test_an_array_without_elements_is_not_sent():
    assert find_moves({0: (0, 0)}, {1: (0, 0)}) == []


def test_elements_that_no_rank_has_are_an_error():
    with pytest.raises(ValueError, match=r"\(3, 5\)"):
        find_moves({0: (0, 3)}, {1: (0, 5)})
