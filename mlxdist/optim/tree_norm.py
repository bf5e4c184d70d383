"""The global norm of gradients, with the same bits whoever holds which part of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from ..arrays.numpy_view import Raw, raw
from ..arrays.pairwise_sum import Node, nodes_of, root_of, squares_of
from ..arrays.types import Array
from ..comm.wire import Means, Wire
from ..layout.sharding import Bucket


def norm_of(means: Means, wire: Wire) -> Array:
    """The global norm of the mean gradients, whoever holds which part of them.

    Each tensor's squares are added in a tree of its own, in float64, where squares of
    float32 are exact and can't overflow; then the tensors' sums, sorted by path. One
    collective of 8 bytes for each node that a rank holds, of the rank that holds most.
    """
    alone = wire.comm.size == 1 or not wire.plan.sharded
    ranks = range(1) if alone else range(wire.comm.size)
    rank = 0 if alone else wire.comm.rank
    own: list[float] = []
    for bucket, chunk in zip(wire.plan.buckets, means.chunks, strict=True):
        for numbers, start, size in _held(bucket, chunk, rank, alone):
            sums = squares_of(numbers, start, size)
            own += [sums[node] for node in sorted(sums)]
    every = [_nodes(wire.plan.buckets, one, alone) for one in ranks]
    rows = [own] if alone else _gathered(own, max(map(len, every)), wire)
    roots = _roots(every, rows, wire)
    return mx.array(np.float32(math.sqrt(sum(roots))))


def _held(
    bucket: Bucket, chunk: Any, rank: int, alone: bool
) -> list[tuple[Raw, int, int]]:
    """A chunk's numbers, each entry's: from which element on, of how many."""
    places = _places(bucket, rank, alone)
    if isinstance(chunk, list):
        return [
            (_numbers(part), start, size)
            for part, (_, start, _, size) in zip(chunk, places, strict=True)
        ]
    numbers, begin = _numbers(chunk), 0
    found = []
    for _, start, stop, size in places:
        found.append((numbers[begin : begin + stop - start], start, size))
        begin += stop - start
    return found


def _numbers(array: Array) -> Raw:
    if array.dtype == mx.float64:
        return raw(array, np.float64)
    return raw(array.astype(mx.float32), np.float32)


def _places(bucket: Bucket, rank: int, alone: bool) -> list[tuple[str, int, int, int]]:
    """Of each entry that a rank's chunk has a part of: path, start, stop and size."""
    if alone:
        return [(entry.path, 0, entry.size, entry.size) for entry in bucket.entries]
    return [(p.entry.path, p.start, p.stop, p.entry.size) for p in bucket.pieces(rank)]


def _nodes(buckets: Sequence[Bucket], rank: int, alone: bool) -> list[tuple[str, Node]]:
    """The nodes that a rank holds, in the order in which it tells their sums."""
    return [
        (path, node)
        for bucket in buckets
        for path, start, stop, size in _places(bucket, rank, alone)
        for node in nodes_of(start, stop, size)
    ]


def _gathered(own: list[float], longest: int, wire: Wire) -> list[list[float]]:
    padded = np.zeros(longest)
    padded[: len(own)] = own
    rows = wire.comm.all_gather_words(padded.view(np.uint64)).view(np.float64)
    return [[float(value) for value in row] for row in rows]


def _roots(
    every: Sequence[Sequence[tuple[str, Node]]],
    rows: Sequence[Sequence[float]],
    wire: Wire,
) -> list[float]:
    held: dict[str, dict[Node, float]] = {e.path: {} for e in wire.plan.entries}
    pairs = itertools.chain.from_iterable(
        zip(nodes, row, strict=False) for nodes, row in zip(every, rows, strict=True)
    )
    for (path, node), value in pairs:
        held[path][node] = value
    return [root_of(held[entry.path], entry.size) for entry in wire.plan.entries]
