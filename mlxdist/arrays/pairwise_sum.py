"""Sums in one binary tree that does not depend on who holds what.

Floating-point addition is not associative, so that a sum has the same bits everywhere
only if its terms are added in the same pairs. Here term 0 is added to term 1, term 2 to
term 3, and so on; then those sums in the same way; one that has no partner goes up as
it is. A rank that holds terms [a, b) can add up the whole nodes among them, at most
2 log2(b - a), and nothing else is needed of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

BLOCK_LEVEL = 16  # 2^16 numbers and the sums of their pairs stay in the cache
_BLOCK = 1 << BLOCK_LEVEL


class Node(NamedTuple):
    """The sum of terms [place * 2^level, (place + 1) * 2^level)."""

    level: int
    place: int


def nodes_of(start: int, stop: int, size: int, level: int = 0) -> list[Node]:
    """The largest nodes that make up [start, stop) of `size` terms, sorted."""
    found = []
    while start < stop:
        if size == 1:
            found.append(Node(level, 0))
            break
        if start % 2:
            found.append(Node(level, start))
            start += 1
        if stop % 2 and stop != size:
            found.append(Node(level, stop - 1))
            stop -= 1
        start, stop = start // 2, -(-stop // 2)
        size, level = -(-size // 2), level + 1
    return sorted(found)


def sums_of(
    terms: NDArray[np.float64], start: int, size: int, level: int = 0
) -> dict[Node, float]:
    """The same with the sums, where `terms` are those from `start` on."""
    found: dict[Node, float] = {}
    while terms.size:
        if size == 1:
            found[Node(level, 0)] = float(terms[0])
            break
        if start % 2:
            found[Node(level, start)] = float(terms[0])
            terms, start = terms[1:], start + 1
        stop = start + terms.size
        if stop % 2:
            if stop == size:
                terms = np.append(terms, 0.0)
            else:
                found[Node(level, stop - 1)] = float(terms[-1])
                terms = terms[:-1]
        terms = terms[0::2] + terms[1::2]
        start, size, level = start // 2, -(-size // 2), level + 1
    return found


def squares_of(numbers: NDArray[Any], start: int, size: int) -> dict[Node, float]:
    """`sums_of` the squares of numbers, in float64, a block at a time."""
    stop = start + numbers.size
    if size <= _BLOCK:
        return sums_of(_squared(numbers), start, size)
    first, last = -(-start // _BLOCK), stop // _BLOCK
    if stop == size:
        last = -(-stop // _BLOCK)
    found: dict[Node, float] = {}
    whole = []
    for block in range(start // _BLOCK, -(-stop // _BLOCK)):
        low, high = max(start, block * _BLOCK), min(stop, (block + 1) * _BLOCK)
        terms = _squared(numbers[low - start : high - start])
        if first <= block < last:
            whole.append(_folded(terms))
            continue
        within = sums_of(terms, low - block * _BLOCK, _BLOCK)
        for node, value in within.items():
            shifted = block * (_BLOCK >> node.level) + node.place
            found[Node(node.level, shifted)] = value
    blocks = -(-size // _BLOCK)
    return found | sums_of(np.array(whole), first, blocks, BLOCK_LEVEL)


def _squared(numbers: NDArray[Any]) -> NDArray[np.float64]:
    wide = numbers.astype(np.float64)
    wide *= wide
    return wide


def _folded(terms: NDArray[np.float64]) -> float:
    """A whole block's sum; the last block of all may be shorter."""
    while terms.size > 1:
        if terms.size % 2:
            terms = np.append(terms, 0.0)
        terms = terms[0::2] + terms[1::2]
    return float(terms[0])


def root_of(sums: dict[Node, float], size: int) -> float:
    """The sum of all `size` terms, from nodes that make them up."""
    level, held = 0, dict(sums)
    while size > 1:
        for node in [node for node in held if node.level == level]:
            left = Node(level, node.place // 2 * 2)
            if left not in held:
                continue
            total = held.pop(left) + held.pop(Node(level, left.place + 1), 0.0)
            held[Node(level + 1, left.place // 2)] = total
        level, size = level + 1, -(-size // 2)
    return held.get(Node(level, 0), 0.0)


def tree_sum(terms: Sequence[Any]) -> Any:
    """The sum of arrays or numbers of any kind."""
    held = list(terms)
    while len(held) > 1:
        odd = [held[-1]] if len(held) % 2 else []
        held = [a + b for a, b in zip(held[0::2], held[1::2], strict=False)] + odd
    return held[0]
