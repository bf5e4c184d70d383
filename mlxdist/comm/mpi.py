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
from ..arrays.dtypes import dtype_of
from ..arrays.numpy_view import raw
from ..arrays.types import Array, Dtype, Raw
from ..layout import traffic
from ..layout.entries import split_counts
from ..layout.sharding import Bucket
from .collectives import Pending, Traffic
from .exchange import MESSAGE_BYTES, AllGather, Exchange, ReduceScatter
from .flight_recorder import Recorder
from .progress import Progress, wait_for
from .reduction import Weights

if TYPE_CHECKING:
    from mpi4py.MPI import Comm, Request


class InFlight(NamedTuple):
    """An exchange under way."""

    exchange: Exchange
    progress: Progress

    def finish(self) -> Array:
        self.progress.wait(self.exchange)
        return self.exchange.result

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
        self._buffers: list[Raw] = []
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

    def all_gather_words(self, words: NDArray[np.uint64]) -> NDArray[np.uint64]:
        self._drain()
        gathered = np.empty((self.size, words.size), np.uint64)
        self._wait(self._comm.Iallgather(words, gathered))
        return gathered

    def all_gather_bytes(self, data: bytes) -> list[bytes]:
        lengths = self.all_gather_words(np.array([len(data)], np.uint64))[:, 0]
        counts = [int(n) for n in lengths]
        gathered = np.empty(sum(counts), np.uint8)
        local = [np.frombuffer(data, np.uint8), self._byte]
        self._wait(self._comm.Iallgatherv(local, [gathered, counts, None, self._byte]))
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
            for start, stop in split_counts(source.nbytes, MESSAGE_BYTES):
                self._comm.Bcast(source[start:stop], root)
        record.end = time.time()
        self.traffic.add(source.nbytes if self.rank == root else 0)
        return array

    def start_reduce_scatter(
        self, parts: Sequence[Array], bucket: Bucket, weights: Weights
    ) -> Pending:
        return self._start(ReduceScatter(self, list(parts), bucket, weights))

    def start_all_gather(self, parts: Sequence[Array], bucket: Bucket) -> Pending:
        dtype = parts[0].dtype if parts else dtype_of(bucket.dtype)
        return self._start(AllGather(self, list(parts), dtype, bucket))

    def start_all_reduce(
        self, parts: Sequence[Array], bucket: Bucket, weights: Weights, dtype: Dtype
    ) -> Pending:
        reduction = ReduceScatter(self, list(parts), bucket, weights)
        gather = AllGather(self, [], dtype, bucket, reduction)
        self.traffic.add(0, collectives=2)
        self._flush()
        self._progress.add_pair(reduction, gather)
        return InFlight(gather, self._progress)

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

    def take_buffer(self, nbytes: int) -> Raw:
        """Return memory for a message. The same few buffers, to stay in the cache."""
        if self._buffers and self._buffers[-1].nbytes >= nbytes:
            return self._buffers.pop()
        return np.empty(max(nbytes, MESSAGE_BYTES), np.uint8)

    def return_buffer(self, buffer: Raw) -> None:
        self._buffers.append(buffer)

    def _start(self, exchange: Exchange) -> Pending:
        self.traffic.add(0)
        self._flush()
        self._progress.add(exchange)
        return InFlight(exchange, self._progress)

    def _drain(self) -> None:
        self._flush()
        self._progress.drain()

    def _wait(self, request: Request) -> None:
        with self.recorder.waiting():
            wait_for(request)
