"""The MPI transport: collectives on evaluated arrays, added in rank order.

Open MPI's own reduce-scatter is slower than its all-reduce, and knows no bfloat16. So
ranks exchange bytes and add what they receive: `exchange.py` says how, `progress.py`
when. Nothing here runs on the accelerator, which is free for the backward pass.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from ..arrays import device
from ..arrays.arena import Arena
from ..arrays.dtypes import dtype_of
from ..arrays.numpy_view import (
    NUMPY_DTYPES,
    copy_bits,
    raw,
    raw_all,
)
from ..arrays.types import Array, Dtype, Raw
from ..layout import traffic
from ..layout.entries import split_counts
from ..layout.sharding import Bucket
from .collectives import Pending, Traffic
from .exchange import (
    ROUND_BYTES,
    AllGather,
    Exchange,
    ReceiveBuffers,
    ReduceScatter,
)
from .flight_recorder import Record, Recorder
from .progress import Progress
from .reduction import Weights

if TYPE_CHECKING:
    from mpi4py.MPI import Comm, Request


class InFlight(NamedTuple):
    """An exchange under way, which fills `result`."""

    exchange: Exchange
    progress: Progress
    result: Array

    def finish(self) -> Array:
        self.progress.wait(self.exchange)
        return self.result

    @property
    def squares(self) -> float | None:
        return self.exchange.squares


class MpiTransport:
    """Collectives of one MPI communicator. See `Collectives` for the contract.

    Args:
        comm: a communicator that belongs to mlxdist alone.
        flush: runs what the other transport of the same world has pending. Called ahead
            of each collective.
        recorder: notified of each collective.
        overlaps: whether ranks can compute while they communicate: on several hosts,
            or on an accelerator. On the cores of one host, each would slow the other.
    """

    name = "host"
    adds_in_rank_order = True
    gathers_in_place = True
    least_bucket = 0

    def __init__(
        self,
        comm: Comm,
        flush: Callable[[], None],
        recorder: Recorder,
        *,
        overlaps: bool,
    ):
        from mpi4py import MPI

        self._byte = MPI.BYTE
        self._comm = comm
        self._flush = flush
        self._progress = Progress(overlaps=overlaps, recorder=recorder)
        self._means, self._wholes = Arena(), Arena()  # short-lived, and parameters
        self.buffers = ReceiveBuffers()
        self.overlaps = overlaps
        self.rank: int = comm.Get_rank()
        self.size: int = comm.Get_size()
        self.traffic = Traffic()
        self.recorder = recorder

    def close(self) -> None:
        """Complete all exchanges, end the thread and free the communicator."""
        self._drain()
        self._progress.close()
        self._comm.Free()

    def all_gather_words(
        self, words: NDArray[np.uint64], meanwhile: Callable[[], None] | None = None
    ) -> NDArray[np.uint64]:
        self._drain()
        gathered = np.empty((self.size, words.size), np.uint64)
        # Never `Allgather`, which does not match it: calls that differ meet here. Open
        # MPI sends to every rank as it starts it, and needs no rank's help later.
        request = self._comm.Iallgather(words, gathered)
        if meanwhile is not None:
            meanwhile()
        with self.recorder.waiting():
            request.Wait()
        return gathered

    def all_gather_bytes(self, data: bytes) -> list[bytes]:
        lengths = self.all_gather_words(np.array([len(data)], np.uint64))[:, 0]
        counts = [int(n) for n in lengths]
        gathered = np.empty(sum(counts), np.uint8)
        local = [np.frombuffer(data, np.uint8), self._byte]
        with self.recorder.waiting():
            self._comm.Allgatherv(local, [gathered, counts, None, self._byte])
        ends = np.cumsum(counts)
        return [
            gathered[end - n : end].tobytes()
            for end, n in zip(ends, counts, strict=True)
        ]

    def broadcast(self, array: Array, root: int) -> Array:
        self._drain()
        if self.rank != root:
            array = mx.zeros(array.shape, array.dtype)
        source = raw(array)
        record = self.recorder.started(
            "broadcast", array.size, str(array.dtype), array.nbytes
        )
        with self.recorder.waiting():
            for start, stop in split_counts(source.nbytes, ROUND_BYTES):
                self._comm.Bcast(source[start:stop], root)
        record.end = time.time()
        self.traffic.add(source.nbytes if self.rank == root else 0)
        return array

    def start_reduce_scatter(
        self,
        parts: Sequence[Array],
        bucket: Bucket,
        weights: Weights,
        dtype: Dtype = None,
    ) -> Pending:
        self._flush()
        dtype = _sum_dtype(parts) if dtype is None else dtype
        start, stop = bucket.span(self.rank)
        result, bits = self._means.allocate(stop - start, dtype)
        reduction = self._reduction(parts, bucket, weights, bits, dtype)
        self.traffic.add(0)
        self._progress.add(reduction)
        return InFlight(reduction, self._progress, result)

    def start_all_gather(
        self, parts: Sequence[Array], bucket: Bucket, into: Array = None
    ) -> Pending:
        self._flush()
        dtype = parts[0].dtype if parts else dtype_of(bucket.dtype)
        if into is None:
            result, full, local = self._whole(bucket, dtype)
            copy_bits(parts, out=local)
        else:
            start, stop = bucket.span(self.rank)
            result, full = into.reshape(-1), raw(into, f"u{dtype.size}")
            local = full[start:stop]
        record = self._record(AllGather, bucket, dtype, local.nbytes)
        gather = AllGather(self, bucket, record, full=full)
        self.traffic.add(0)
        self._progress.add(gather)
        return InFlight(gather, self._progress, result)

    def start_all_reduce(
        self, parts: Sequence[Array], bucket: Bucket, weights: Weights, dtype: Dtype
    ) -> Pending:
        self._flush()
        result, full, local = self._whole(bucket, dtype)
        reduction = self._reduction(parts, bucket, weights, local, dtype)
        gather = AllGather(
            self,
            bucket,
            self._record(AllGather, bucket, dtype, local.nbytes),
            full=full,
            reduction=reduction,
        )
        self.traffic.add(0, collectives=2)
        self._progress.add_pair(reduction, gather)
        return InFlight(gather, self._progress, result)

    def settle(self) -> None:
        device.settle()

    def sum_scalar(self, value: Array) -> Array:
        local = np.array([float(value)], np.float64).view(np.uint64)
        every = self.all_gather_words(local).view(np.float64)[:, 0]
        return mx.array(sum(every.tolist()), mx.float32)

    def reduce_scatter_bytes(
        self, bucket: Bucket, item_size: int, *, pairwise: bool
    ) -> int:
        return traffic.reduce_scatter_bytes(bucket, self.rank, item_size)

    def all_gather_bytes_sent(self, bucket: Bucket, item_size: int) -> int:
        return traffic.all_gather_bytes(bucket, self.rank, item_size)

    def all_reduce_bytes(
        self, bucket: Bucket, item_size: int, mean_item_size: int, *, pairwise: bool
    ) -> int:
        return self.reduce_scatter_bytes(
            bucket, item_size, pairwise=pairwise
        ) + self.all_gather_bytes_sent(bucket, mean_item_size)

    # -- what an exchange needs

    def peers(self) -> list[int]:
        """The other ranks, beginning with the next one, which spreads the load."""
        return [(self.rank + step) % self.size for step in range(1, self.size)]

    def send(self, part: Raw, peer: int) -> Request:
        self.traffic.add(part.nbytes, collectives=0)
        return self._comm.Isend([part, self._byte], peer)

    def receive(self, part: Raw, peer: int) -> Request:
        return self._comm.Irecv([part, self._byte], peer)

    def _reduction(
        self,
        parts: Sequence[Array],
        bucket: Bucket,
        weights: Weights,
        mean: Raw,
        mean_dtype: Dtype,
    ) -> ReduceScatter:
        dtype = parts[0].dtype
        nbytes = sum(part.nbytes for part in parts)
        record = self._record(ReduceScatter, bucket, dtype, nbytes)
        return ReduceScatter(
            self,
            bucket,
            record,
            source=raw_all(list(parts), NUMPY_DTYPES[dtype]),
            mean=mean,
            dtype=mean_dtype,
            weights=weights,
            is_bfloat16=dtype == mx.bfloat16,
        )

    def _whole(self, bucket: Bucket, dtype: Dtype) -> tuple[Array, Raw, Raw]:
        """Return an array for a whole bucket, its bits, and those of this rank."""
        result, full = self._wholes.allocate(bucket.size, dtype)
        start, stop = bucket.span(self.rank)
        return result, full, full[start:stop]

    def _record(
        self, kind: type[Exchange], bucket: Bucket, dtype: Dtype, nbytes: int
    ) -> Record:
        return self.recorder.started(kind.name, bucket.size, str(dtype), nbytes)

    def _drain(self) -> None:
        self._flush()
        self._progress.drain()


def _sum_dtype(parts: Sequence[Array]) -> Dtype:
    """Return the dtype in which numbers are added: float32, or float64 for those."""
    dtype = parts[0].dtype
    return dtype if dtype.size > mx.float32.size else mx.float32
