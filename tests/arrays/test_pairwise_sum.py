"""Sums in one binary tree: the same bits however the terms are cut."""

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
from mlxdist.optim.accumulation import MicroBatches


def reference(terms):
    """Term by term, pair by pair, as it is defined."""
    terms = list(terms)
    while len(terms) > 1:
        pairs = [terms[i : i + 2] for i in range(0, len(terms), 2)]
        terms = [pair[0] + pair[1] if len(pair) == 2 else pair[0] for pair in pairs]
    return terms[0]


def cuts(size, parts, seed):
    numbers = np.random.default_rng(seed)
    inner = sorted(numbers.integers(0, size + 1, parts - 1).tolist())
    return list(zip([0, *inner], [*inner, size], strict=True))


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 8, 13, 64, 100, 1023])
@pytest.mark.parametrize("parts", [1, 2, 3, 8])
def test_any_cut_gives_the_same_bits(size, parts):
    terms = np.random.default_rng(size).standard_normal(size) ** 2
    held = {}
    for start, stop in cuts(size, parts, seed=parts):
        sums = node_sums(terms[start:stop], start, size)
        assert sorted(sums) == nodes_of(start, stop, size)
        held |= sums
    assert root_sum(held, size) == reference(terms)
    assert pairwise_sum(list(terms)) == reference(terms)


@pytest.mark.parametrize("size", [65536, 65537, 200_000, 262_144])
@pytest.mark.parametrize("parts", [1, 2, 5])
def test_blocks_are_the_same_tree(size, parts):
    numbers = np.random.default_rng(size).standard_normal(size).astype(np.float32)
    held = {}
    for start, stop in cuts(size, parts, seed=parts):
        sums = node_sums_of_squares(numbers[start:stop], start, size)
        assert sorted(sums) == nodes_of(start, stop, size)
        held |= sums
    wide = numbers.astype(np.float64) ** 2
    whole = node_sums(wide, 0, size)
    assert root_sum(held, size) == next(iter(whole.values()))
    assert list(whole) == [Node((size - 1).bit_length(), 0)]


def test_another_order_would_give_other_bits():
    """That the tests above can fail."""
    terms = np.random.default_rng(0).standard_normal(1000) ** 2
    assert reference(terms) != sum(terms.tolist())


@pytest.mark.parametrize("count", [1, 2, 3, 6, 7, 12])
def test_weights_are_added_in_the_tree_too(count):
    weights = [0.1 * (n + 1) for n in range(count)]
    so_far = MicroBatches(count, pairwise=True)
    for weight in weights[:-1]:
        so_far.add({}, weight)
    assert so_far.weight_with(weights[-1]) == reference(weights)
    so_far.finish({}, weights[-1])
    assert so_far.count == 0
