"""Trees to buckets, over the wire, and back. Only this file concatenates and splits.

`reduce` takes every rank's gradients and gives the mean of what this rank owns;
`gather` takes what it owns and gives everything. Between the two lies a shard: a flat
tree `{path: array}` of 1-D slices, or of whole tensors.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import mlx.core as mx

from .collectives import Array, Collectives, Pending, Traffic, Weights
from .layout import ITEM_SIZES
from .native import all_sum_bytes
from .sharding import Bucket, Plan
from .trees import Flat

# Buckets whose exchange has been started and not yet finished: enough to keep the wire
# busy while one is packed and one is unpacked, few enough to bound the memory.
IN_FLIGHT = 3


class Wire:
    """A plan on a transport.

    Args:
        plan: which bucket holds what.
        comm: the transport.
        wire_dtype: what gradients travel as; their own dtype where it is None. "native"
            adds in it too, and "host" in float32.
    """

    def __init__(self, plan: Plan, comm: Collectives, *, wire_dtype: Any = None):
        self.plan = plan
        self.comm = comm
        self.wire_dtype = wire_dtype
        self.pieces = [tuple(bucket.pieces(comm.rank)) for bucket in plan.buckets]

    def reduce(self, gradients: Flat, weights: Weights) -> Flat:
        """The weighted mean over the ranks, of this rank's shard.

        Args:
            gradients: all of them, with the plan's paths and shapes.
            weights: each rank's.

        Returns:
            `{path: array}` of the shard, of everything where the plan is replicated.
            Added in float32 and rounded once to the gradients' dtype. Bytes on the
            wire: see `Collectives.start_sum_scatter` and `start_all_sum`.
        """
        if self.comm.size == 1:
            return self.cut(gradients)
        total = weights.total if weights.every else self.comm.sum_scalar(weights.own)
        whole = not (self.plan.sharded or self.comm.name == "host")
        start = self.comm.start_all_sum if whole else self.comm.start_sum_scatter
        parts: list[Array] = []
        for index, summed in self._pipeline(
            lambda index, bucket: start(self._pack(bucket, gradients), bucket, weights)
        ):
            entry = self.plan.buckets[index].entries[0]
            parts.append((summed / total).astype(gradients[entry.path].dtype))
        if self.plan.sharded:
            return self._unpack(parts)
        return self._unpack_whole(enumerate(parts) if whole else self._collect(parts))

    def gather(self, shard: Flat) -> Flat:
        """Everything, from every rank's shard, in the plan's dtypes.

        Sends what a rank owns to each other rank.
        """
        if not self.plan.sharded:
            return shard
        if self.comm.size == 1:
            return {e.path: shard[e.path].reshape(e.shape) for e in self.plan.entries}
        chunks = [
            _concatenate([shard[p.entry.path] for p in pieces], bucket.dtype)
            for pieces, bucket in zip(self.pieces, self.plan.buckets, strict=True)
        ]
        return self._unpack_whole(self._collect(chunks))

    def cut(self, full: Flat) -> Flat:
        """This rank's shard of arrays that every rank has whole; nothing travels."""
        if not self.plan.sharded:
            return full
        shard: Flat = {}
        for piece in (piece for pieces in self.pieces for piece in pieces):
            array = full[piece.entry.path]
            if self.plan.strategy == "elements":
                array = array.reshape(-1)[piece.start : piece.stop]
            shard[piece.entry.path] = array
        return shard

    def expected(self) -> Traffic:
        """What a step of this rank sends, from the plan alone; `traffic` counts it."""
        traffic = Traffic()
        ranks = self.plan.ranks
        for bucket in self.plan.buckets if ranks > 1 else ():
            item, wire_item = ITEM_SIZES[bucket.dtype], self._pack_size(bucket)
            start, stop = bucket.span(self.comm.rank)
            own, all_sum = stop - start, all_sum_bytes(bucket.size * wire_item, ranks)
            if self.comm.name == "host":
                traffic.add((bucket.size - own) * wire_item)
                traffic.add((ranks - 1) * own * item)
                continue
            traffic.add(all_sum)
            if self.plan.strategy == "elements":
                traffic.add((ranks - 1) * bucket.chunk * item)
            elif self.plan.strategy == "tensors":
                traffic.add(all_sum_bytes(bucket.size * item, ranks))
        return traffic

    def _pipeline(
        self, launch: Callable[[int, Bucket], Pending]
    ) -> Iterator[tuple[int, Array]]:
        pending: deque[tuple[int, Pending]] = deque()
        for index, bucket in enumerate(self.plan.buckets):
            pending.append((index, launch(index, bucket)))
            if len(pending) == IN_FLIGHT:
                index, oldest = pending.popleft()
                yield index, oldest.finish()
        for index, late in pending:
            yield index, late.finish()

    def _pack(self, bucket: Bucket, gradients: Flat) -> Array:
        parts = [gradients[entry.path] for entry in bucket.entries]
        return _concatenate(parts, self._pack_dtype(bucket))

    def _pack_dtype(self, bucket: Bucket) -> Any:
        # What is wider than float32 stays so.
        return None if bucket.dtype == "float64" else self.wire_dtype

    def _pack_size(self, bucket: Bucket) -> int:
        dtype = self._pack_dtype(bucket)
        return int(ITEM_SIZES[bucket.dtype] if dtype is None else dtype.size)

    def _collect(self, chunks: Sequence[Array]) -> Iterator[tuple[int, Array]]:
        return self._pipeline(
            lambda index, bucket: self.comm.start_all_gather(chunks[index], bucket)
        )

    def _unpack(self, chunks: Sequence[Array]) -> Flat:
        shard: Flat = {}
        for pieces, chunk in zip(self.pieces, chunks, strict=True):
            for entry, start, stop, offset in pieces:
                part = chunk[offset : offset + stop - start]
                whole = self.plan.strategy == "tensors"
                shard[entry.path] = part.reshape(entry.shape) if whole else part
        return shard

    def _unpack_whole(self, flats: Iterable[tuple[int, Array]]) -> Flat:
        full: Flat = {}
        for index, flat in flats:
            bucket = self.plan.buckets[index]
            ends = zip(bucket.entries, pairwise(bucket.offsets), strict=True)
            for entry, (start, stop) in ends:
                full[entry.path] = flat[start:stop].reshape(entry.shape)
        return full


def _concatenate(parts: Sequence[Array], dtype: Any) -> Array:
    """The arrays as one flat vector; `dtype` may be None, a dtype or its name."""
    dtype = getattr(mx, dtype) if isinstance(dtype, str) else dtype
    if not parts:
        return mx.zeros(0, dtype)
    flat = parts[0].reshape(-1) if len(parts) == 1 else _joined(parts)
    return flat if dtype is None else flat.astype(dtype)


def _joined(parts: Sequence[Array]) -> Array:
    return mx.concatenate([part.reshape(-1) for part in parts])
