"""The host transport: MPI on evaluated arrays, without copies, added in rank order.

Open MPI's own reduce-scatter is slower than its all-reduce, and knows no bfloat16. So
ranks exchange bytes, and add what they get themselves: see exchange.py for how and
progress.py for when.

Nothing here runs on the accelerator, which is free for the backward pass meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from ..arrays.numpy_view import Raw, raw
from ..arrays.types import Array
from ..layout.entries import split_counts
from .collectives import Pending, Traffic, Weights
from .exchange import MESSAGE_BYTES, AllGather, Exchange, SumScatter
from .flight_recorder import Recorder
from .progress import Progress, wait_for


class Host:
    """Collectives of one MPI communicator. See `Collectives` for the contract.

    Args:
        comm: an mpi4py communicator that belongs to mlxdist alone.
        before: called ahead of each collective, to run what another transport of the
            same world has pending.
        recorder: told of each collective.
        overlaps: whether ranks can compute while they communicate: on several hosts,
            or on an accelerator. On one host's cores one would only slow the other.
    """

    name = "host"

    def __init__(
        self,
        comm: Any,
        before: Callable[[], None],
        recorder: Recorder,
        *,
        overlaps: bool,
    ):
        from mpi4py import MPI

        self._mpi = MPI
        self._comm = comm
        self._flush = before
        self._progress = Progress(MPI, overlaps=overlaps, recorder=recorder)
        self._inboxes: list[Raw] = []
        self._held: AllGather | None = None  # to be started behind the next sum
        self.overlaps = overlaps
        self.rank: int = comm.Get_rank()
        self.size: int = comm.Get_size()
        self.traffic = Traffic()
        self.recorder = recorder

    def _before(self) -> None:
        self._flush()
        self._release()
        self._progress.drain()

    def all_gather_words(self, words: NDArray[np.uint64]) -> NDArray[np.uint64]:
        self._before()
        gathered = np.empty((self.size, words.size), np.uint64)
        self._wait(self._comm.Iallgather(words, gathered))
        return gathered

    def all_gather_bytes(self, data: bytes) -> list[bytes]:
        lengths = self.all_gather_words(np.array([len(data)], np.uint64))[:, 0]
        counts = [int(n) for n in lengths]
        gathered = np.empty(sum(counts), np.uint8)
        sent, byte = np.frombuffer(data, np.uint8), self._mpi.BYTE
        self._wait(self._comm.Iallgatherv([sent, byte], [gathered, counts, None, byte]))
        ends = np.cumsum(counts)
        return [
            gathered[end - n : end].tobytes()
            for end, n in zip(ends, counts, strict=True)
        ]

    def _wait(self, request: Any) -> None:
        with self.recorder.waiting():
            wait_for(request)

    def broadcast(self, array: Array, root: int) -> Array:
        self._before()
        if self.rank == root:
            source = raw(array)
        else:
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

    def start_sum_scatter(
        self, parts: Sequence[Array], bucket: Any, weights: Weights
    ) -> Pending:
        dtype = parts[0].dtype
        return self._start(SumScatter(self, list(parts), dtype, bucket, weights))

    def start_all_gather(self, parts: Sequence[Array], bucket: Any) -> Pending:
        dtype = parts[0].dtype if parts else getattr(mx, bucket.dtype)
        return self._start(AllGather(self, list(parts), dtype, bucket))

    def start_all_sum(
        self, parts: Sequence[Array], bucket: Any, weights: Weights, dtype: Any
    ) -> Pending:
        sums = SumScatter(self, list(parts), parts[0].dtype, bucket, weights)
        # Behind the next bucket's sum, which keeps the wire busy until this one's is
        # complete: an order that all ranks have, whatever arrives first.
        self._start(sums, ahead=True)
        self._held = AllGather(self, [], dtype, bucket, sums)
        return self._held

    def sum_scalar(self, value: Array) -> Array:
        own = np.array([float(value)], np.float64).view(np.uint64)
        every = self.all_gather_words(own).view(np.float64)[:, 0]
        return mx.array(sum(every.tolist()), mx.float32)

    # -- what an exchange needs

    def peers(self) -> list[int]:
        """The other ranks, beginning with the next one, which spreads the load."""
        return [(self.rank + step) % self.size for step in range(1, self.size)]

    def send(self, part: Raw, peer: int) -> Any:
        self.traffic.add(part.nbytes, 0)
        return self._comm.Isend([part, self._mpi.BYTE], peer)

    def receive(self, part: Raw, peer: int) -> Any:
        return self._comm.Irecv([part, self._mpi.BYTE], peer)

    def inbox(self, nbytes: int) -> Raw:
        """Memory for a message; always the same few pieces, which stay in the cache."""
        if self._inboxes and self._inboxes[-1].nbytes >= nbytes:
            return self._inboxes.pop()
        return np.empty(max(nbytes, MESSAGE_BYTES), np.uint8)

    def give_back(self, inbox: Raw) -> None:
        self._inboxes.append(inbox)

    def finish(self, exchange: Exchange) -> None:
        if exchange is self._held:
            self._release()
        self._progress.finish(exchange)

    def _start(self, exchange: Exchange, *, ahead: bool = False) -> Pending:
        self._flush()
        if not ahead:
            self._release()
        self._progress.add(exchange)
        self._release()
        return exchange

    def _release(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            self._progress.add(held)
