"""Pairwise exchanges of one bucket: a reduce-scatter, and an all-gather.

In a reduce-scatter each rank sends each owner its part as bytes, and owners add what
they receive: in float32, in rank order, whatever dtype travelled. An all-gather is the
same the other way round (pairwise exchange: Thakur, Rabenseifner, Gropp, IJHPCA 2005,
section 4).

An exchange goes in rounds, so that what arrives is added while it is in the cache, and
so that receive buffers are bounded. `progress.py` drives the rounds.
"""

from __future__ import annotations

import time
from bisect import bisect_left, insort
from collections import deque
from dataclasses import dataclass, field
from operator import attrgetter
from threading import Lock
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ..arrays.numpy_view import NUMPY_DTYPES, encode
from ..arrays.types import Dtype, Raw
from ..layout.entries import split_counts
from ..layout.sharding import Bucket
from .flight_recorder import Record
from .reduction import Weights, combine

if TYPE_CHECKING:
    from mpi4py.MPI import Request

# Bytes that a rank receives in a round at most, from all others together. Smaller
# rounds cost more calls, larger ones more memory.
ROUND_BYTES = 4 * 2**20
# Bytes of free receive buffers: as many as are in flight, see progress.py.
MOST_FREE = 4 * ROUND_BYTES
# Elements that are added at once: the sum of a block stays in the second-level cache.
BLOCK = 64 * 1024
_FLOAT32 = 4  # bytes


class ReceiveBuffers:
    """Memory for messages: the same few buffers, to stay in the cache.

    A buffer is used for smaller messages, too. A message for which all free buffers are
    too small gets a new one in place of one of them, so that there are never more
    buffers than there were messages at a time. While small messages have the large
    buffers, large ones bring more of them: what is free is bounded. For several
    threads.
    """

    def __init__(self) -> None:
        self._free: list[Raw] = []  # smallest first
        self._nbytes = 0  # of those
        self._lock = Lock()

    def take(self, nbytes: int) -> Raw:
        """Return a buffer of `nbytes` or more."""
        with self._lock:
            index = bisect_left(self._free, nbytes, key=_SIZE)
            if index < len(self._free):
                return self._pop(index)
            if self._free:
                self._pop(0)
        return np.empty(nbytes, np.uint8)

    def put_back(self, buffer: Raw) -> None:
        with self._lock:
            insort(self._free, buffer, key=_SIZE)
            self._nbytes += buffer.nbytes
            while self._nbytes > MOST_FREE:
                self._pop(-1)

    def _pop(self, index: int) -> Raw:
        buffer = self._free.pop(index)
        self._nbytes -= buffer.nbytes
        return buffer


_SIZE = attrgetter("nbytes")


class Endpoint(Protocol):
    """Point-to-point messages of one rank, and buffers to receive them in."""

    rank: int
    size: int
    buffers: ReceiveBuffers

    def peers(self) -> list[int]: ...
    def send(self, part: Raw, peer: int) -> Request: ...
    def receive(self, part: Raw, peer: int) -> Request: ...


@dataclass
class Round:
    """Elements [start, stop) of every rank's span, in flight.

    Attributes:
        nbytes: that the rank of the longest span receives in it.
    """

    start: int
    stop: int
    nbytes: int
    requests: list[Request]
    received: dict[int, Raw] = field(default_factory=dict)


class Exchange:
    """One bucket's exchange.

    Attributes:
        name: of the collective.
        squares: sum of squares of this rank's span of a mean; None without one.

    Args:
        endpoint: sends and receives.
        bucket: says which rank has which span.
        item_size: bytes of an element on the wire.
        record: of this collective; gets the time of its end.
    """

    name = ""

    def __init__(
        self, endpoint: Endpoint, bucket: Bucket, item_size: int, record: Record
    ):
        self.endpoint = endpoint
        self.squares: float | None = None
        self.spans = bucket.spans
        self.start, self.stop = self.spans[endpoint.rank]
        longest = bucket.chunk
        peers = max(1, endpoint.size - 1)
        self._bytes_per_element = peers * item_size
        per_round = max(1, ROUND_BYTES // self._bytes_per_element)
        self.rounds = deque(split_counts(longest, per_round))  # not posted yet
        self._rounds_left = len(self.rounds)
        self._record = record

    @property
    def complete(self) -> bool:
        return self._rounds_left == 0

    @property
    def ready(self) -> bool:
        """Whether what it sends is there."""
        return True

    def post(self, start: int, stop: int) -> Round:
        """Start to send and receive a round."""
        raise NotImplementedError

    def take(self, arrived: Round) -> None:
        """Process a round that has arrived."""
        self._rounds_left -= 1
        if self.complete:
            self._record.end = time.time()

    def clip(self, rank: int, start: int, stop: int) -> tuple[int, int]:
        """A round's part of a rank's span, in elements of the whole bucket."""
        first, end = self.spans[rank]
        return min(first + start, end), min(first + stop, end)


class ReduceScatter(Exchange):
    """This rank's span of the weighted mean, and its sum of squares.

    Args:
        source: this rank's numbers, of the whole bucket.
        mean: the bits of this rank's span, to be written.
        dtype: of the mean: that in which numbers are added, or one it is rounded to.
        is_bfloat16: whether `source` has the bits of bfloat16.
    """

    name = "reduce_scatter"

    def __init__(
        self,
        endpoint: Endpoint,
        bucket: Bucket,
        record: Record,
        *,
        source: Raw,
        mean: Raw,
        dtype: Dtype,
        weights: Weights,
        is_bfloat16: bool,
    ):
        super().__init__(endpoint, bucket, source.itemsize, record)
        self.squares = 0.0
        self._dtype = dtype
        self._sums: Raw | None = None  # of a block, before they are rounded
        if mean.itemsize < _FLOAT32:
            self._sums = np.empty(min(BLOCK, mean.size), np.float32)
        self._mean = mean if self._sums is not None else mean.view(NUMPY_DTYPES[dtype])
        self._source = source
        self._weights = weights
        self._is_bfloat16 = is_bfloat16

    def post(self, start: int, stop: int) -> Round:
        first, last = self.clip(self.endpoint.rank, start, stop)
        bounds = first - self.start, last - self.start
        posted = Round(*bounds, (stop - start) * self._bytes_per_element, [])
        nbytes = (last - first) * self._source.itemsize
        for peer in reversed(self.endpoint.peers()):
            if nbytes:
                buffer = posted.received[peer] = self.endpoint.buffers.take(nbytes)
                posted.requests.append(self.endpoint.receive(buffer[:nbytes], peer))
        for peer in self.endpoint.peers():
            first, last = self.clip(peer, start, stop)
            if first < last:
                part = self._source[first:last]
                posted.requests.append(self.endpoint.send(part, peer))
        return posted

    def take(self, arrived: Round) -> None:
        size = arrived.stop - arrived.start
        local = self._source[self.start + arrived.start : self.start + arrived.stop]
        parts = [
            local
            if rank == self.endpoint.rank or not size
            else arrived.received[rank][: local.nbytes].view(local.dtype)
            for rank in range(self.endpoint.size)
        ]
        # The norm finds what is not finite, and the error names it.
        with np.errstate(over="ignore", invalid="ignore"):
            for start in range(0, size, BLOCK):
                stop = min(start + BLOCK, size)
                block = self._mean[arrived.start + start : arrived.start + stop]
                self._add([part[start:stop] for part in parts], block)
        for buffer in arrived.received.values():
            self.endpoint.buffers.put_back(buffer)
        super().take(arrived)

    def _add(self, parts: list[Raw], out: Raw) -> None:
        assert self.squares is not None
        sums = out if self._sums is None else self._sums[: out.size]
        self.squares += combine(
            parts, self._weights, is_bfloat16=self._is_bfloat16, out=sums
        )
        if self._sums is not None:
            encode(sums, self._dtype, out=out)


class AllGather(Exchange):
    """Every rank's span of a bucket.

    Args:
        full: the whole bucket's bits, to be written; this rank's span is there.
        reduction: has to be complete first; it writes this rank's span, and its squares
            become those of the gathered mean.
    """

    name = "all_gather"

    def __init__(
        self,
        endpoint: Endpoint,
        bucket: Bucket,
        record: Record,
        *,
        full: Raw,
        reduction: ReduceScatter | None = None,
    ):
        super().__init__(endpoint, bucket, full.itemsize, record)
        self._full = full
        self._reduction = reduction

    @property
    def ready(self) -> bool:
        return self._reduction is None or self._reduction.complete

    def post(self, start: int, stop: int) -> Round:
        if self._reduction is not None:
            self.squares = self._reduction.squares
            self._reduction = None
        posted = Round(start, stop, (stop - start) * self._bytes_per_element, [])
        for peer in reversed(self.endpoint.peers()):
            first, last = self.clip(peer, start, stop)
            if first < last:
                part = self._full[first:last]
                posted.requests.append(self.endpoint.receive(part, peer))
        first, last = self.clip(self.endpoint.rank, start, stop)
        for peer in self.endpoint.peers():
            if first < last:
                part = self._full[first:last]
                posted.requests.append(self.endpoint.send(part, peer))
        return posted
