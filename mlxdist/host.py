"""The host transport: MPI on evaluated arrays, without copies, added in rank order.

Open MPI's own reduce-scatter is slower than its all-reduce, and knows no bfloat16. So
each rank sends each owner its part as bytes, and owners add what they get: in float32,
in rank order, whatever travelled. The gather is the same exchange the other way round
(Thakur, Rabenseifner, Gropp, IJHPCA 2005, section 4: pairwise exchange).

Nothing here runs on the accelerator, which is free for the backward pass meanwhile.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from .collectives import Array, Pending, Traffic, Weights, split_counts
from .recorder import Recorder

Raw = NDArray[Any]

# One round of an exchange moves at most this much in and out of a rank, and two of
# them are on the wire while a third is added up.
ROUND_BYTES = 4 * 2**20
ROUNDS_IN_FLIGHT = 2
# Elements that are added at once: the sum of a block stays in the second-level cache.
BLOCK = 32 * 1024

_NUMPY = {
    mx.float32: np.dtype(np.float32),
    mx.float16: np.dtype(np.float16),
    mx.bfloat16: np.dtype(np.uint16),  # numpy has no bfloat16: its bits
    mx.float64: np.dtype(np.float64),
}


def raw(array: Array, dtype: Any = np.uint8) -> Raw:
    """A numpy view of an array's memory, writable, after evaluating it."""
    array = mx.contiguous(array.reshape(-1))
    mx.eval(array)
    if array.size == 0:
        return np.empty(0, dtype)
    return np.frombuffer(memoryview(array).cast("B"), dtype)


def decode(part: Raw, is_bfloat16: bool, dtype: Any) -> Raw:
    """Numbers as they travelled -> numbers in which they are added."""
    if is_bfloat16:
        return (part.astype(np.uint32) << 16).view(np.float32)
    return part.astype(dtype, copy=False)


class Host:
    """Collectives of one MPI communicator. See `Collectives` for the contract.

    Args:
        comm: an mpi4py communicator that belongs to mlxdist alone.
        before: called ahead of each collective, to run what another transport of the
            same world has pending.
        recorder: told of each collective.
    """

    name = "host"

    def __init__(self, comm: Any, before: Callable[[], None], recorder: Recorder):
        from mpi4py import MPI

        self._mpi = MPI
        self._comm = comm
        self._before = before
        self.rank: int = comm.Get_rank()
        self.size: int = comm.Get_size()
        self.traffic = Traffic()
        self.recorder = recorder

    def barrier(self) -> None:
        self._before()
        self._comm.Barrier()

    def all_gather_words(self, words: NDArray[np.uint64]) -> NDArray[np.uint64]:
        self._before()
        self.traffic.headers += 1
        gathered = np.empty((self.size, words.size), np.uint64)
        self._comm.Allgather(words, gathered)
        return gathered

    def all_gather_bytes(self, data: bytes) -> list[bytes]:
        lengths = self.all_gather_words(np.array([len(data)], np.uint64))[:, 0]
        counts = [int(n) for n in lengths]
        self.traffic.headers += 1
        gathered = np.empty(sum(counts), np.uint8)
        self._comm.Allgatherv(
            np.frombuffer(data, np.uint8), (gathered, counts, None, self._mpi.BYTE)
        )
        ends = np.cumsum(counts)
        return [
            gathered[end - n : end].tobytes()
            for end, n in zip(ends, counts, strict=True)
        ]

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
            for start, stop in split_counts(source.nbytes, ROUND_BYTES):
                self._comm.Bcast(source[start:stop], root)
        record.end = time.time()
        self.traffic.add(source.nbytes if self.rank == root else 0)
        return array

    def start_sum_scatter(self, flat: Array, bucket: Any, weights: Weights) -> Pending:
        self._before()
        return _SumScatter(self, flat, bucket, weights)

    def start_all_gather(self, chunk: Array, bucket: Any) -> Pending:
        self._before()
        return _AllGather(self, chunk, bucket)

    def start_all_sum(self, flat: Array, bucket: Any, weights: Weights) -> Pending:
        raise NotImplementedError("the two halves, so that the mean is rounded once")

    def sum_scalar(self, value: Array) -> Array:
        own = np.array([float(value)], np.float64).view(np.uint64)
        every = self.all_gather_words(own).view(np.float64)[:, 0]
        return mx.array(sum(every.tolist()), mx.float32)

    def peers(self) -> list[int]:
        """The other ranks, beginning with the next one, which spreads the load."""
        return [(self.rank + step) % self.size for step in range(1, self.size)]

    def send(self, part: Raw, peer: int) -> Any:
        self.traffic.add(part.nbytes, 0)
        return self._comm.Isend([part, self._mpi.BYTE], peer)

    def receive(self, part: Raw, peer: int) -> Any:
        return self._comm.Irecv([part, self._mpi.BYTE], peer)

    def wait(self, requests: list[Any]) -> None:
        with self.recorder.waiting():
            self._mpi.Request.Waitall(requests)


@dataclass
class _Round:
    """Part [start, stop) of every chunk, on its way."""

    start: int
    stop: int
    requests: list[Any]
    inbox: dict[int, Raw] = field(default_factory=dict)


class _Exchange:
    """An exchange in rounds, so that its buffers are bounded and rounds overlap."""

    name = ""

    def __init__(self, host: Host, array: Array, bucket: Any):
        self.host = host
        self.record = host.recorder.started(
            self.name, bucket.size, str(array.dtype), array.nbytes
        )
        self.spans = [bucket.span(rank) for rank in range(host.size)]
        self.begin, self.end = self.spans[host.rank]
        longest = max(stop - start for start, stop in self.spans)
        per_round = max(1, ROUND_BYTES // (array.itemsize * host.size))
        self.todo = deque(split_counts(longest, per_round))
        self.under_way: deque[_Round] = deque()
        host.traffic.add(0)

    def clip(self, rank: int, start: int, stop: int) -> tuple[int, int]:
        """A round's part of a rank's span, in elements of the whole bucket."""
        begin, end = self.spans[rank]
        return min(begin + start, end), min(begin + stop, end)

    def fill(self) -> None:
        while self.todo and len(self.under_way) < ROUNDS_IN_FLIGHT:
            self.under_way.append(self.post(*self.todo.popleft()))

    def post(self, start: int, stop: int) -> _Round:
        raise NotImplementedError

    def take(self, done: _Round) -> None:
        raise NotImplementedError

    def run(self) -> None:
        self.fill()
        while self.under_way:
            done = self.under_way.popleft()
            self.host.wait(done.requests)
            self.fill()
            self.take(done)
        self.record.end = time.time()


class _SumScatter(_Exchange):
    name = "sum_scatter"

    def __init__(self, host: Host, flat: Array, bucket: Any, weights: Weights):
        super().__init__(host, flat, bucket)
        dtype = _NUMPY[flat.dtype]
        self.is_bfloat16 = flat.dtype == mx.bfloat16
        self.weights = weights
        self.source = raw(flat, dtype)
        wide = mx.float64 if flat.dtype == mx.float64 else mx.float32
        self.result = mx.zeros(self.end - self.begin, wide)
        self.sums = raw(self.result, _NUMPY[wide])
        self.fill()

    def post(self, start: int, stop: int) -> _Round:
        own_start, own_stop = self.clip(self.host.rank, start, stop)
        posted = _Round(own_start - self.begin, own_stop - self.begin, [])
        for peer in reversed(self.host.peers()):
            if own_start < own_stop:
                inbox = np.empty(own_stop - own_start, self.source.dtype)
                posted.inbox[peer] = inbox
                posted.requests.append(self.host.receive(inbox, peer))
        for peer in self.host.peers():
            first, last = self.clip(peer, start, stop)
            if first < last:
                posted.requests.append(self.host.send(self.source[first:last], peer))
        return posted

    def take(self, done: _Round) -> None:
        own = self.source[self.begin + done.start : self.begin + done.stop]
        parts = [
            own if rank == self.host.rank else done.inbox.get(rank, own)
            for rank in range(self.host.size)
        ]
        # What is not finite is found by its norm, and named.
        with np.errstate(over="ignore", invalid="ignore"):
            for start in range(0, done.stop - done.start, BLOCK):
                stop = min(start + BLOCK, done.stop - done.start)
                block = self.sums[done.start + start : done.start + stop]
                self.add(block, [part[start:stop] for part in parts])

    def add(self, block: Raw, parts: Sequence[Raw]) -> None:
        every = self.weights.every
        assert every is not None, "the host transport knows all weights"
        first = True
        for part, weight in zip(parts, every, strict=True):
            if weight == 0:  # a rank without examples may well have sent nan
                continue
            numbers = decode(part, self.is_bfloat16, block.dtype)
            if weight != 1:
                numbers = numbers * block.dtype.type(weight)
            if first:
                block[:] = numbers
            else:
                block += numbers
            first = False

    def finish(self) -> Array:
        self.run()
        return self.result


class _AllGather(_Exchange):
    name = "all_gather"

    def __init__(self, host: Host, chunk: Array, bucket: Any):
        super().__init__(host, chunk, bucket)
        dtype = np.dtype(f"u{chunk.itemsize}")
        self.source = raw(chunk, dtype)
        self.result = mx.zeros(bucket.size, chunk.dtype)
        self.full = raw(self.result, dtype)
        self.full[self.begin : self.end] = self.source
        self.fill()

    def post(self, start: int, stop: int) -> _Round:
        posted = _Round(start, stop, [])
        for peer in reversed(self.host.peers()):
            first, last = self.clip(peer, start, stop)
            if first < last:
                inbox = self.full[first:last]
                posted.requests.append(self.host.receive(inbox, peer))
        first, last = self.clip(self.host.rank, start, stop)
        for peer in self.host.peers():
            if first < last:
                part = self.source[first - self.begin : last - self.begin]
                posted.requests.append(self.host.send(part, peer))
        return posted

    def take(self, done: _Round) -> None:
        """What came is where it belongs."""

    def finish(self) -> Array:
        self.run()
        return self.result
