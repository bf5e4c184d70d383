"""Reduce-scatter over MLX's ring, which has none: by sends between neighbours.

The ring algorithm (Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms", JPDC
2009): a rank's span starts at the rank after it, goes round the ring to the right, and
each rank adds its own gradients to what arrives. With N ranks it takes N - 1 steps, and
each rank sends (N-1)/N of the bucket. The order of the additions is fixed: span j is
((g[j+1] + g[j+2]) + ...) + g[j].

Sends have a stream of their own, so that both directions of the wire are in use.
Receives and additions run on the stream of the other collectives. All of it is the
CPU's: an accelerator that waited for a neighbour would be stopped by its watchdog.
"""

from __future__ import annotations

import mlx.core as mx

from ..arrays.types import Array
from ..layout import traffic
from ..layout.sharding import Bucket
from .chain import Chain, Group, Lazy, only


class Ring:
    """Reduce-scatter of a group of ranks, in order with the collectives of its chain.

    MLX's receive has no input, and so can't be made to depend on an earlier collective.
    It is queued at once, in its place on the collectives' stream. So `mx.compile` can't
    trace it.
    """

    def __init__(self, group: Group, chain: Chain):
        self._group = group
        self._rank, self._size = group.rank(), group.size()
        self._chain = chain

    def traces(self, bucket: Bucket) -> bool:
        """Whether `mx.compile` can trace the reduce-scatter of a bucket."""
        return self._swaps(bucket)

    def bytes_sent(self, bucket: Bucket, item_size: int) -> int:
        """Bytes that this rank sends in a reduce-scatter."""
        if self._swaps(bucket):
            return traffic.padded_all_gather_bytes(bucket, item_size)
        return traffic.reduce_scatter_bytes(bucket, self._rank, item_size)

    def reduce_scatter(self, flat: Array, bucket: Bucket) -> Lazy:
        """(bucket.size,) on each rank -> this rank's span of the sum."""
        if flat.size == 0:
            return Lazy(self._chain, [flat], only)
        if self._swaps(bucket):
            return self._swap(flat, bucket)
        spans = self._spans(self._chain.before_sends(flat), bucket)
        total = spans[(self._rank - 1) % self._size]
        for step in range(self._size - 1):
            if total.size:
                self._send(total)
            total = self._add_received(spans[(self._rank - 2 - step) % self._size])
        if flat.size == total.size:  # nothing was sent
            self._chain.follow(total)
        return Lazy(self._chain, [total], only)

    def _swaps(self, bucket: Bucket) -> bool:
        return self._size == 2 and bucket.owners is None

    def _swap(self, flat: Array, bucket: Bucket) -> Lazy:
        """Exchange the spans of two ranks: gather those that are not the ranks' own.

        One collective of MLX, which keeps both of its sockets busy both ways.
        """
        peer, stream = 1 - self._rank, self._chain.stream
        spans = mx.split(flat, [bucket.span(1)[0]], stream=stream)
        local, remote = spans[self._rank], spans[peer]
        if bucket.chunk > remote.size:
            padding = (0, bucket.chunk - remote.size)
            remote = mx.pad(remote, padding, stream=stream)
        rows = self._chain.all_gather(remote)
        return rows.then(lambda rows: rows[peer][: local.size] + local)

    def _spans(self, flat: Array, bucket: Bucket) -> list[Array]:
        """Each rank's span, without a copy."""
        starts = [bucket.span(rank)[0] for rank in range(1, self._size)]
        spans = list(mx.split(flat, starts, stream=self._chain.streams.sends))
        self._chain.queue(*spans)
        return spans

    def _send(self, array: Array) -> None:
        right = (self._rank + 1) % self._size
        sends = self._chain.streams.sends
        self._chain.follow(
            mx.distributed.send(array, right, group=self._group, stream=sends)
        )

    def _add_received(self, local: Array) -> Array:
        """Return the sum of an array and of what the rank to the left sends."""
        if local.size == 0:
            return local
        left = (self._rank - 1) % self._size
        stream = self._chain.stream
        received = mx.distributed.recv_like(
            local, left, group=self._group, stream=stream
        )
        self._chain.queue(received)
        total = mx.add(received, local, stream=stream)
        del received  # so that the sum takes its memory
        self._chain.queue(total)
        return total
