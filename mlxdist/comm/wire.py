"""Trees to buckets, over the wire, and back. Only this file concatenates and splits.

`reduce` takes every rank's gradients and gives the mean of what this rank steps with,
as one flat chunk for each bucket. What the optimizer makes of them goes, bucket by
bucket, through `gather`, and is whole on every rank again.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from ..arrays.concat import Split
from ..arrays.numpy_view import raw
from ..arrays.trees import dtype_name
from ..arrays.types import Array, Flat, Pieces
from ..layout.entries import ITEM_SIZES
from ..layout.sharding import Bucket, Plan
from . import norms
from .collectives import Collectives, Pending, Traffic, Weights
from .exchange import sum_of_squares
from .native import all_sum_bytes

Chunk = Array | Pieces  # flat, or the parts of it

# Bytes of buckets whose exchange has been started and not finished: enough to keep the
# wire busy while one is packed and one is unpacked, few enough to bound the memory.
IN_FLIGHT = 8 * 2**20
# Bytes of a tensor, on the mean, for which a look at each costs less than keeping it.
_LARGE = 256 * 1024
_FAR_FROM_OVERFLOW = 1e30


class Means(NamedTuple):
    """The mean gradients that this rank has, in the order of the buckets.

    `chunks` are flat; where nothing travels, on one rank, there are lists of the
    gradients themselves. `squares` is the sum of the squares of this rank's spans, inf
    where it is not finite, None where it was not measured.
    """

    chunks: deque[Chunk] | Iterator[Chunk]
    squares: float | None

    def used_up(self) -> Iterator[tuple[int, Chunk]]:
        """Each bucket's, which are let go of one by one."""
        if not isinstance(self.chunks, deque):
            yield from enumerate(self.chunks)
            return
        for index in range(len(self.chunks)):
            yield index, self.chunks.popleft()

    def arrays(self) -> Pieces:
        """All of them, in no special form."""
        parts = [part if isinstance(part, list) else [part] for part in self.chunks]
        return [array for part in parts for array in part]


class Wire:
    """A plan on a transport.

    Args:
        plan: which bucket holds what.
        comm: the transport.
        wire_dtype: what gradients travel as; their own dtype where it is None. "native"
            adds in it too, and "host" in float32.
        mean_dtype: what means come back as, where "host" adds up for replicated
            state; the parameters' own dtype where it is None.
        in_tree: whether the ranks are added in a binary tree.
    """

    def __init__(
        self,
        plan: Plan,
        comm: Collectives,
        *,
        wire_dtype: Any = None,
        mean_dtype: Any = None,
        in_tree: bool = False,
    ):
        self.plan = plan
        self.comm = comm
        self.wire_dtype = wire_dtype
        self.mean_dtype = mean_dtype
        self.in_tree = in_tree
        self.pieces = plan.pieces(comm.rank)
        self._wholes = [
            Split(list(pairwise(b.offsets)), [e.shape for e in b.entries])
            for b in plan.buckets
        ]

    def reduce(
        self,
        gradients: Flat,
        weights: Weights,
        *,
        traced: bool = False,
        streams: bool = False,
    ) -> Means:
        """The weighted mean over the ranks, of what this rank owns.

        Args:
            gradients: all of them, with the plan's paths and shapes, maybe lazy.
            weights: each rank's.
            traced: whether `mx.compile` is tracing.
            streams: whether a bucket may go on before all are reduced; they are then
                exchanged as they are asked for, and their squares not measured.

        Returns:
            This rank's span of each bucket, or the whole bucket for replicated state.
            Bytes on the wire: see `Collectives.start_sum_scatter` and `start_all_sum`.
        """
        if self.comm.size == 1:
            return Means(deque(self._parts(gradients)), None)
        if weights.every is None:
            weights = weights._replace(total=self.comm.sum_scalar(weights.own))
        comm = self.comm

        def launch() -> Iterator[Pending]:
            for bucket in self.plan.buckets:
                dtype = getattr(mx, self._pack_dtype(bucket))
                parts = [gradients[entry.path] for entry in bucket.entries]
                if parts[0].dtype != dtype:
                    parts = [part.astype(dtype) for part in parts]
                if self.plan.sharded:
                    yield comm.start_sum_scatter(parts, bucket, weights)
                    continue
                mean_dtype = getattr(mx, self._mean_dtype(bucket))
                yield comm.start_all_sum(parts, bucket, weights, mean_dtype)

        pending = self._pipeline(launch())
        if streams:
            return Means((one.finish() for one in pending), None)
        means, squares = deque[Chunk](), []
        for one in pending:
            means.append(one.finish())
            squares.append(one.squares)
        measured = [square for square in squares if square is not None]
        return Means(means, sum(measured) if measured else None)

    def certainly_finite(self, gradients: Flat, weights: Weights) -> bool:
        """Whether it can be told beforehand, cheaply, that the mean will be finite.

        Then nothing need be kept until all of it is known, which is worth a look at
        this rank's gradients where they are there already: with ranks on one host,
        whose cores they compute and communicate on in turn. 8 bytes a rank travel.
        """
        entries = self.plan.entries
        enough = sum(entry.nbytes for entry in entries) >= _LARGE * len(entries)
        alone = (
            self.comm.size > 1 and self.comm.name == "host" and not self.comm.overlaps
        )
        if not (alone and enough and all(e.dtype == "float32" for e in entries)):
            return False
        own = 0.0
        if weights.own:
            own = sum(sum_of_squares(raw(g, np.float32)) for g in gradients.values())
        bound = float(self.comm.sum_scalar(mx.array(own * weights.own**2)))
        return bound < _FAR_FROM_OVERFLOW

    def gather(
        self, stepped: Iterable[tuple[int, Chunk]], *, traced: bool
    ) -> Iterator[tuple[Bucket, Pieces]]:
        """Each bucket's entries, whole, from every rank's pieces.

        Sends what a rank owns to each other rank.
        """
        buckets = self.plan.buckets
        if not self.plan.sharded or self.comm.size == 1:
            for index, chunk in stepped:
                yield buckets[index], self.whole(index, chunk, traced=traced)
            return

        def launch() -> Iterator[Pending]:
            for index, chunk in stepped:
                parts = chunk if isinstance(chunk, list) else [chunk]
                yield self.comm.start_all_gather(parts, buckets[index])

        for index, pending in enumerate(self._pipeline(launch())):
            yield buckets[index], self.whole(index, pending.finish(), traced=traced)

    def whole(self, index: int, chunk: Chunk, *, traced: bool) -> Pieces:
        """A bucket's entries in their shapes, from all of it."""
        if not isinstance(chunk, list):
            return self._wholes[index](chunk, traced=traced)
        if self.plan.strategy != "elements":
            return chunk
        entries = zip(chunk, self.plan.buckets[index].entries, strict=True)
        return [piece.reshape(entry.shape) for piece, entry in entries]

    def expected(self) -> Traffic:
        """What a step of this rank sends, from the plan alone; `traffic` counts it."""
        traffic = Traffic()
        ranks = self.plan.ranks
        for bucket in self.plan.buckets if ranks > 1 else ():
            item, wire_item = ITEM_SIZES[bucket.dtype], self._pack_size(bucket)
            start, stop = bucket.span(self.comm.rank)
            own = stop - start
            if self.comm.name == "host":
                traffic.add((bucket.size - own) * wire_item)
                published = item if self.plan.sharded else self._mean_size(bucket)
                traffic.add((ranks - 1) * own * published)
                continue
            nbytes = bucket.size * wire_item
            every = (ranks - 1) * nbytes
            traffic.add(every if self.in_tree else all_sum_bytes(nbytes, ranks))
            if self.plan.strategy == "elements":
                traffic.add((ranks - 1) * bucket.chunk * item)
            elif self.plan.strategy == "tensors":
                traffic.add(all_sum_bytes(bucket.size * item, ranks))
        return traffic

    def _parts(self, gradients: Flat) -> Iterator[Pieces]:
        for pieces in self.pieces:
            yield [
                gradients[p.entry.path].reshape(p.shape(self.plan.strategy))
                for p in pieces
            ]

    def _pipeline(self, started: Iterator[Pending]) -> Iterator[Pending]:
        """Those that have been started, oldest first, with others under way."""
        under_way: deque[Pending] = deque()
        oldest, nbytes = 0, 0
        buckets = self.plan.buckets
        for newest, pending in enumerate(started):
            under_way.append(pending)
            nbytes += buckets[newest].nbytes
            while nbytes > IN_FLIGHT and len(under_way) > 1:
                nbytes -= buckets[oldest].nbytes
                oldest += 1
                yield under_way.popleft()
        while under_way:
            yield under_way.popleft()

    def _pack_dtype(self, bucket: Bucket) -> str:
        return _dtype_or(self.wire_dtype, bucket)

    def _pack_size(self, bucket: Bucket) -> int:
        return ITEM_SIZES[self._pack_dtype(bucket)]

    def _mean_dtype(self, bucket: Bucket) -> str:
        return _dtype_or(self.mean_dtype, bucket)

    def _mean_size(self, bucket: Bucket) -> int:
        return ITEM_SIZES[self._mean_dtype(bucket)]


def _dtype_or(dtype: Any, bucket: Bucket) -> str:
    # What is wider than float32 stays so.
    if dtype is None or bucket.dtype == "float64":
        return bucket.dtype
    return dtype_name(dtype)


def measured(means: Means, wire: Wire, *, traced: bool) -> Array:
    """The global norm of the mean gradients; not finite only where they are not."""
    sharded = wire.plan.sharded
    arrays = means.arrays()
    norm = norms.global_norm(
        arrays,
        wire.comm,
        parts=sharded or means.squares is not None,
        squares=means.squares,
        traced=traced,
    )
    if traced or math.isfinite(float(norm)):
        return norm
    return norms.scaled_norm(arrays, wire.comm, parts=sharded)
