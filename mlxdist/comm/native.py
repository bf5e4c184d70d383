"""The native transport: `mx.distributed`, over any backend and inside `mx.compile`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from ..arrays.concat import join
from ..arrays.dtypes import dtype_of
from ..arrays.pairwise_sum import pairwise_sum
from ..arrays.types import Array, Dtype, Pieces
from ..layout import traffic
from ..layout.sharding import Bucket
from .chain import Chain, Lazy
from .collectives import Pending, Traffic
from .flight_recorder import Recorder
from .reduction import Weights
from .ring import Ring

Group = mx.distributed.Group
_INTEGERS = {1: mx.uint8, 2: mx.uint16, 4: mx.uint32, 8: mx.uint64}
_HAVE_REDUCE_SCATTER = ("nccl", "jaccl")

# Each step around the ring wakes several threads of MLX, while others poll. With
# 4 hosts on 2 cores at 10 Gbit/s, 32 MB take 300 ms in one bucket, 1060 ms in 2 MiB.
_RING_BUCKET = 32 * 2**20


class NativeTransport:
    """Collectives of one `mx.distributed` group. See `Collectives` for the contract."""

    name = "native"
    overlaps = True
    adds_in_rank_order = False
    gathers_in_place = False

    def __init__(self, group: Group, backend: str, recorder: Recorder):
        self.group = group
        self.rank = group.rank()
        self.size = group.size()
        self.traffic = Traffic()
        self.recorder = recorder
        self.least_bucket = _RING_BUCKET if backend == "ring" else 0
        self._has_reduce_scatter = backend in _HAVE_REDUCE_SCATTER
        self._chain = Chain(group, backend, recorder)
        self._ring = Ring(group, self._chain) if backend == "ring" else None

    def tracing(self) -> AbstractContextManager[None]:
        """While `mx.compile` traces: see `Chain.tracing`."""
        return self._chain.tracing()

    def flush(self) -> None:
        """Run what is pending, so that another transport may follow."""
        self._chain.flush()

    def settle(self) -> None:
        self._chain.settle()

    def all_gather_words(
        self, words: NDArray[np.uint64], meanwhile: Callable[[], None] | None = None
    ) -> NDArray[np.uint64]:
        pending = self._chain.all_gather(mx.array(words.view(np.uint32)))
        if meanwhile is not None:
            meanwhile()
        gathered = pending.finish()
        with self.recorder.waiting():
            return np.array(gathered).view(np.uint64)

    def all_gather_bytes(self, data: bytes) -> list[bytes]:
        lengths = self.all_gather_words(np.array([len(data)], np.uint64))[:, 0]
        padded = np.zeros(int(lengths.max()), np.uint8)
        padded[: len(data)] = np.frombuffer(data, np.uint8)
        rows = np.array(self._all_gather(mx.array(padded)))
        return [row[: int(n)].tobytes() for row, n in zip(rows, lengths, strict=True)]

    def broadcast(self, array: Array, root: int) -> Array:
        # As integers: not every backend takes every dtype, and the bits stay as is.
        flat = array.reshape(-1).view(_INTEGERS[array.itemsize])
        row = self._all_gather(self._chain.evaluate(flat))[root]
        result = row.view(array.dtype).reshape(array.shape)
        mx.eval(result)
        self.traffic.add(traffic.gather_whole_bytes(array.nbytes, self.size))
        return result

    def start_all_reduce(
        self, parts: Sequence[Array], bucket: Bucket, weights: Weights, dtype: Dtype
    ) -> Pending:
        return self._mean(parts, bucket, weights)

    def reduces_whole(self, bucket: Bucket) -> bool:
        """Whether `start_reduce_scatter` all-reduces the bucket, and cuts it then."""
        is_cut = self._ring_of(bucket, pairwise=False) is not None
        return not is_cut and not self._reduces_by_scatter(bucket, pairwise=False)

    def start_with_weight(
        self, packed: Array, bucket: Bucket, *, sharded: bool
    ) -> tuple[Array, Lazy]:
        """All-reduce a bucket and the weights behind it.

        Returns:
            The sum of the weights, and this rank's span of the mean, or all of it.
        """
        self.traffic.add(
            self.all_reduce_bytes(bucket, packed.itemsize, 0, pairwise=False)
        )
        summed = self._chain.all_sum(packed)
        total = summed.finish()[-1]
        start, stop = bucket.span(self.rank) if sharded else (0, bucket.size)
        return total, summed.then(lambda sum: sum[start:stop] / total)

    def start_reduce_scatter(
        self,
        parts: Sequence[Array],
        bucket: Bucket,
        weights: Weights,
        dtype: Dtype = None,
    ) -> Pending:
        start, stop = bucket.span(self.rank)
        ring = self._ring_of(bucket, pairwise=weights.pairwise)
        if ring is not None:
            flat = self._joined(parts, bucket)
            self.traffic.add(ring.bytes_sent(bucket, flat.itemsize))
            span = ring.reduce_scatter(flat, bucket)
            return span.then(lambda span: span / weights.total)
        if not self._reduces_by_scatter(bucket, pairwise=weights.pairwise):
            return self._mean(parts, bucket, weights).then(lambda sum: sum[start:stop])
        flat = self._joined(parts, bucket)
        self.traffic.add(traffic.padded_all_gather_bytes(bucket, flat.itemsize))
        chunk = self._chain.sum_scatter(self._padded_spans(flat, bucket))
        return chunk.then(lambda chunk: chunk[: stop - start] / weights.total)

    def start_all_gather(
        self, parts: Sequence[Array], bucket: Bucket, into: Array = None
    ) -> Pending:
        start, stop = bucket.span(self.rank)
        local = self._joined(parts, bucket)
        self.traffic.add(self.all_gather_bytes_sent(bucket, local.itemsize))
        if self._gathers_spans(bucket):
            rows = self._chain.all_gather(
                self._padded(local, 0, bucket.chunk - local.size)
            )
            return rows.then(lambda rows: _without_padding(rows, bucket))
        # One rank has most of it: every rank adds its own span to zeros. As integers,
        # since -0.0 + 0.0 is 0.0.
        bits = mx.view(local, _INTEGERS[local.itemsize], stream=self._chain.stream)
        whole = self._chain.all_sum(self._padded(bits, start, bucket.size - stop))
        return whole.then(lambda bits: bits.view(local.dtype))

    def sum_scalar(self, value: Array) -> Array:
        return (
            self._chain.all_sum(self._chain.evaluate(value.reshape(1)))
            .finish()
            .reshape(())
        )

    def all_reduce_bytes(
        self, bucket: Bucket, item_size: int, mean_item_size: int, *, pairwise: bool
    ) -> int:
        nbytes = bucket.size * item_size
        if pairwise:
            return traffic.gather_whole_bytes(nbytes, self.size)
        return traffic.all_reduce_bytes(nbytes, self.size)

    def reduce_scatter_bytes(
        self, bucket: Bucket, item_size: int, *, pairwise: bool
    ) -> int:
        ring = self._ring_of(bucket, pairwise=pairwise)
        if ring is not None:
            return ring.bytes_sent(bucket, item_size)
        if self._reduces_by_scatter(bucket, pairwise=pairwise):
            return traffic.padded_all_gather_bytes(bucket, item_size)
        return self.all_reduce_bytes(bucket, item_size, item_size, pairwise=pairwise)

    def all_gather_bytes_sent(self, bucket: Bucket, item_size: int) -> int:
        if self._gathers_spans(bucket):
            return traffic.padded_all_gather_bytes(bucket, item_size)
        return traffic.all_reduce_bytes(bucket.size * item_size, self.size)

    def _ring_of(self, bucket: Bucket, *, pairwise: bool) -> Ring | None:
        """The ring, where it is what reduces and scatters."""
        if self._ring is None or pairwise:
            return None
        can = self._ring.traces(bucket) or not self._chain.is_tracing
        return self._ring if can else None

    def _reduces_by_scatter(self, bucket: Bucket, *, pairwise: bool) -> bool:
        return self._has_reduce_scatter and not pairwise and self._gathers_spans(bucket)

    def _gathers_spans(self, bucket: Bucket) -> bool:
        """Whether spans padded to the longest are no more bytes than an all-reduce."""
        padded = traffic.padded_all_gather_bytes(bucket, 1)
        whole = traffic.all_reduce_bytes(bucket.size, self.size)
        return bucket.owners is None or padded <= whole

    def _mean(self, parts: Sequence[Array], bucket: Bucket, weights: Weights) -> Lazy:
        flat = self._joined(parts, bucket)
        self.traffic.add(
            self.all_reduce_bytes(bucket, flat.itemsize, 0, pairwise=weights.pairwise)
        )
        if weights.pairwise:
            rows = self._chain.all_gather(flat)
            return rows.then(lambda rows: pairwise_sum(list(rows)) / weights.total)
        return self._chain.all_sum(flat).then(lambda sum: sum / weights.total)

    def _all_gather(self, flat: Array) -> Array:
        """(n,) -> (ranks, n)."""
        return self._chain.all_gather(flat).finish()

    def _joined(self, parts: Sequence[Array], bucket: Bucket) -> Array:
        if not parts:
            return mx.zeros(0, dtype_of(bucket.dtype), stream=self._chain.stream)
        return self._chain.evaluate(join(list(parts)))

    def _padded(self, flat: Array, before: int, after: int) -> Array:
        """Add zeros. MLX copies the array where there are none to add, too."""
        if not (before or after):
            return flat
        return mx.pad(flat, (before, after), stream=self._chain.stream)

    def _padded_spans(self, flat: Array, bucket: Bucket) -> Array:
        """The whole bucket -> (ranks, chunk): each rank's span, zeros behind it."""
        stream, ranks = self._chain.stream, bucket.ranks
        if bucket.is_even:
            padded = self._padded(flat, 0, bucket.chunk * ranks - bucket.size)
            return mx.reshape(padded, (ranks, bucket.chunk), stream=stream)
        ends = [bucket.span(rank)[1] for rank in range(ranks - 1)]
        spans = mx.split(flat, ends, stream=stream)
        rows = [self._padded(span, 0, bucket.chunk - span.size) for span in spans]
        return mx.stack(rows, stream=stream)


def _without_padding(rows: Array, bucket: Bucket) -> Array:
    """Every rank's padded span -> the whole bucket."""
    if bucket.is_even:
        return rows.reshape(-1)[: bucket.size]
    spans = [bucket.span(rank) for rank in range(bucket.ranks)]
    parts: Pieces = [
        row[: stop - start] for row, (start, stop) in zip(rows, spans, strict=True)
    ]
    return mx.concatenate(parts)
