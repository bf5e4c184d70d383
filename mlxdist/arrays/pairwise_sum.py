"""Pairwise sums: the same bits on any number of ranks, however terms are cut.

Floating-point addition is not associative, so a sum has the same bits everywhere only
if its terms are added in the same pairs. Here term 0 is added to term 1, term 2 to
term 3, and so on; then those sums in the same way; a term without a partner moves up
unchanged. A rank that holds terms [a, b) can reduce them to at most 2 log2(b - a)
complete nodes of that tree, and the other ranks need no more than those.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from .types import Raw

BLOCK_LEVEL = 16  # 2^16 numbers and the sums of their pairs stay in the cache
_BLOCK = 1 << BLOCK_LEVEL

Term = TypeVar("Term")


class Node(NamedTuple):
    """The sum of terms [position * 2^level, (position + 1) * 2^level)."""

    level: int
    position: int


def nodes_of(start: int, stop: int, size: int, level: int = 0) -> list[Node]:
    """Return the largest nodes that make up [start, stop) of `size` terms, sorted."""
    nodes = []
    while start < stop:
        if size == 1:
            nodes.append(Node(level, 0))
            break
        if start % 2:
            nodes.append(Node(level, start))
            start += 1
        if stop % 2 and stop != size:
            nodes.append(Node(level, stop - 1))
            stop -= 1
        start, stop = start // 2, -(-stop // 2)
        size, level = -(-size // 2), level + 1
    return sorted(nodes)


def node_sums(
    terms: NDArray[np.float64], start: int, size: int, level: int = 0
) -> dict[Node, float]:
    """Return the sums of `nodes_of(start, start + terms.size, size)`."""
    sums: dict[Node, float] = {}
    while terms.size:
        if size == 1:
            sums[Node(level, 0)] = float(terms[0])
            break
        if start % 2:
            sums[Node(level, start)] = float(terms[0])
            terms, start = terms[1:], start + 1
        stop = start + terms.size
        if stop % 2:
            if stop == size:
                terms = np.append(terms, 0.0)
            else:
                sums[Node(level, stop - 1)] = float(terms[-1])
                terms = terms[:-1]
        terms = terms[0::2] + terms[1::2]
        start, size, level = start // 2, -(-size // 2), level + 1
    return sums


def node_sums_of_squares(numbers: Raw, start: int, size: int) -> dict[Node, float]:
    """Return the `node_sums` of the squares of numbers, in float64, block by block."""
    stop = start + numbers.size
    if size <= _BLOCK:
        return node_sums(_squared(numbers), start, size)
    first, last = -(-start // _BLOCK), stop // _BLOCK
    if stop == size:
        last = -(-stop // _BLOCK)
    sums: dict[Node, float] = {}
    whole_blocks = []
    for block in range(start // _BLOCK, -(-stop // _BLOCK)):
        low, high = max(start, block * _BLOCK), min(stop, (block + 1) * _BLOCK)
        terms = _squared(numbers[low - start : high - start])
        if first <= block < last:
            whole_blocks.append(_block_sum(terms))
            continue
        within = node_sums(terms, low - block * _BLOCK, _BLOCK)
        for node, value in within.items():
            shifted = block * (_BLOCK >> node.level) + node.position
            sums[Node(node.level, shifted)] = value
    blocks = -(-size // _BLOCK)
    return sums | node_sums(np.array(whole_blocks), first, blocks, BLOCK_LEVEL)


def _squared(numbers: Raw) -> NDArray[np.float64]:
    wide = numbers.astype(np.float64)
    wide *= wide
    return wide


def _block_sum(terms: NDArray[np.float64]) -> float:
    """Return the sum of a whole block; the last block of all may be shorter."""
    while terms.size > 1:
        if terms.size % 2:
            terms = np.append(terms, 0.0)
        terms = terms[0::2] + terms[1::2]
    return float(terms[0])


def root_sum(sums: dict[Node, float], size: int) -> float:
    """Return the sum of all `size` terms, from the nodes that make them up."""
    level, nodes = 0, dict(sums)
    while size > 1:
        for node in [node for node in nodes if node.level == level]:
            left = Node(level, node.position // 2 * 2)
            if left not in nodes:
                continue
            total = nodes.pop(left) + nodes.pop(Node(level, left.position + 1), 0.0)
            nodes[Node(level + 1, left.position // 2)] = total
        level, size = level + 1, -(-size // 2)
    return nodes.get(Node(level, 0), 0.0)


def pairwise_sum(terms: Sequence[Term]) -> Term:
    """Return the sum of terms of any kind that can be added, as the tree adds them."""
    level = list(terms)
    while len(level) > 1:
        odd = [level[-1]] if len(level) % 2 else []
        pairs = zip(level[0::2], level[1::2], strict=False)
        level = [a + b for a, b in pairs] + odd  # type: ignore[operator]
    return level[0]
