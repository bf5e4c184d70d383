"""Pairwise sums in one binary tree: the same bits however the terms are cut."""

import numpy as np
import pytest

from mlxdist.arrays.pairwise_sum import (
    Node,
    node_sums,
    node_sums_of_squares,
    nodes_of,
    pairwise_sum,
    root_sum,
)


def reference(terms):
    """Return the sum, pair by pair, as it is defined."""
    terms = list(terms)
    while len(terms) > 1:
        pairs = [terms[i : i + 2] for i in range(0, len(terms), 2)]
        terms = [pair[0] + pair[1] if len(pair) == 2 else pair[0] for pair in pairs]
    return terms[0]


def random_ranges(size, parts, seed):
    """Return `parts` consecutive ranges that cover `size`, some of them empty."""
    numbers = np.random.default_rng(seed)
    inner = sorted(numbers.integers(0, size + 1, parts - 1).tolist())
    return list(zip([0, *inner], [*inner, size], strict=True))


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 8, 13, 64, 100, 1023])
@pytest.mark.parametrize("parts", [1, 2, 3, 8])
def test_sums_of_any_ranges_give_the_same_root(size, parts):
    terms = np.random.default_rng(size).standard_normal(size) ** 2
    nodes = {}
    for start, stop in random_ranges(size, parts, seed=parts):
        sums = node_sums(terms[start:stop], start, size)
        assert sorted(sums) == nodes_of(start, stop, size)
        nodes |= sums
    assert root_sum(nodes, size) == reference(terms)
    assert pairwise_sum(list(terms)) == reference(terms)


@pytest.mark.parametrize("size", [65536, 65537, 200_000, 262_144])
@pytest.mark.parametrize("parts", [1, 2, 5])
def test_squares_of_large_ranges_are_nodes_of_the_same_tree(size, parts):
    numbers = np.random.default_rng(size).standard_normal(size).astype(np.float32)
    nodes = {}
    for start, stop in random_ranges(size, parts, seed=parts):
        sums = node_sums_of_squares(numbers[start:stop], start, size)
        assert sorted(sums) == nodes_of(start, stop, size)
        nodes |= sums
    whole = node_sums(numbers.astype(np.float64) ** 2, 0, size)
    assert root_sum(nodes, size) == next(iter(whole.values()))
    assert list(whole) == [Node((size - 1).bit_length(), 0)]


def test_sum_in_another_order_gives_other_bits():
    """So that the tests above can fail."""
    terms = np.random.default_rng(0).standard_normal(1000) ** 2
    assert reference(terms) != sum(terms.tolist())
