"""Pairwise exchanges of one bucket: a reduce-scatter, and an all-gather.

In a reduce-scatter each rank sends each owner its part as bytes, and owners add what
they receive: in float32, in rank order, whatever dtype travelled. An all-gather is the
same the other way round (pairwise exchange: Thakur, Rabenseifner, Gropp, IJHPCA 2005,
section 4).

An exchange goes in rounds, so that what arrives is added while it is in the cache, and
so that receive buffers are bounded. `progress.py` drives the rounds.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import mlx.core as mx
import numpy as np

from ..arrays.numpy_view import (
    NUMPY_DTYPES,
    encode,
    raw,
    raw_all,
    uninitialized,
)
from ..arrays.types import Array, Dtype, Raw
from ..layout.entries import split_counts
from ..layout.sharding import Bucket
from .flight_recorder import Recorder
from .reduction import Weights, combine

if TYPE_CHECKING:
    from mpi4py.MPI import Request

# Bytes that a round moves at most from each rank to each other one. They are added, or
# handed on, while they are in the second-level cache or not far from it.
MESSAGE_BYTES = 2**20
# Elements that are added at once: the sum of a block stays in the second-level cache.
BLOCK = 64 * 1024


class Endpoint(Protocol):
    """Point-to-point messages of one rank, and buffers to receive them in."""

    rank: int
    size: int
    recorder: Recorder

    def peers(self) -> list[int]: ...
    def send(self, part: Raw, peer: int) -> Request: ...
    def receive(self, part: Raw, peer: int) -> Request: ...
    def take_buffer(self, nbytes: int) -> Raw: ...
    def return_buffer(self, buffer: Raw) -> None: ...


@dataclass
class Round:
    """Elements [start, stop) of every rank's span, in flight."""

    start: int
    stop: int
    requests: list[Request]
    received: dict[int, Raw] = field(default_factory=dict)


class Exchange:
    """One bucket's exchange. Its arrays, laid end to end, may be lazy until `begin`."""

    name = ""

    def __init__(
        self, endpoint: Endpoint, arrays: list[Array], dtype: Dtype, bucket: Bucket
    ):
        self.endpoint = endpoint
        self.arrays = arrays
        self.dtype = dtype
        self.bucket = bucket
        nbytes = sum(array.nbytes for array in arrays)
        self.record = endpoint.recorder.started(
            self.name, bucket.size, str(dtype), nbytes
        )
        self.squares: float | None = None
        self.spans = [bucket.span(rank) for rank in range(endpoint.size)]
        self.start, self.stop = self.spans[endpoint.rank]
        longest = max(stop - start for start, stop in self.spans)
        per_round = max(1, MESSAGE_BYTES // dtype.size)
        self.rounds = deque(split_counts(longest, per_round))  # not posted yet
        self.rounds_left = len(self.rounds)
        self.finished = threading.Event()
        self._callbacks: list[Callable[[], None]] = []
        self._closing = threading.Lock()  # of the list of callbacks
        self._prepared = False

    @property
    def complete(self) -> bool:
        return self.rounds_left == 0

    @property
    def ready(self) -> bool:
        """Whether its data is there, once its arrays are evaluated."""
        return True

    def begin(self) -> None:
        """Look at the arrays' memory. Called before each round, arrays evaluated."""
        if not self._prepared:
            self._prepared = True
            self.prepare()

    def when_complete(self, callback: Callable[[], None]) -> None:
        """Call back once it is complete, or given up after an error: see `Progress`.

        The call comes from whichever thread completes it, at once where it is complete.
        """
        with self._closing:
            if not self.finished.is_set():
                self._callbacks.append(callback)
                return
        callback()

    def finish(self) -> None:
        """Wake up whoever waits for it. Called once, when nothing more will arrive."""
        with self._closing:
            self.finished.set()
        for callback in self._callbacks:
            callback()

    @property
    def result(self) -> Array:
        raise NotImplementedError

    def prepare(self) -> None:
        """View the arrays' memory, and allocate the result."""
        raise NotImplementedError

    def post(self, start: int, stop: int) -> Round:
        """Start to send and receive a round."""
        raise NotImplementedError

    def take(self, arrived: Round) -> None:
        """Process a round that has arrived."""
        self.rounds_left -= 1
        if self.complete:
            self.record.end = time.time()
            self.finish()

    def clip(self, rank: int, start: int, stop: int) -> tuple[int, int]:
        """A round's part of a rank's span, in elements of the whole bucket."""
        first, end = self.spans[rank]
        return min(first + start, end), min(first + stop, end)


class ReduceScatter(Exchange):
    """This rank's span of the weighted mean, in float32, and its sum of squares."""

    name = "reduce_scatter"

    def __init__(
        self,
        endpoint: Endpoint,
        arrays: list[Array],
        bucket: Bucket,
        weights: Weights,
    ):
        super().__init__(endpoint, arrays, arrays[0].dtype, bucket)
        self.squares = 0.0
        self._weights = weights
        self._is_bfloat16 = self.dtype == mx.bfloat16
        self._sum_dtype = mx.float64 if self.dtype == mx.float64 else mx.float32

    @property
    def result(self) -> Array:
        return self._result

    @property
    def mean(self) -> Raw:
        """The result as numpy sees it."""
        return self._mean

    def prepare(self) -> None:
        self._source = raw_all(self.arrays, NUMPY_DTYPES[self.dtype])
        self._result = uninitialized(self.stop - self.start, self._sum_dtype)
        self._mean = raw(self._result, NUMPY_DTYPES[self._sum_dtype])

    def post(self, start: int, stop: int) -> Round:
        first, last = self.clip(self.endpoint.rank, start, stop)
        posted = Round(first - self.start, last - self.start, [])
        nbytes = (last - first) * self._source.itemsize
        for peer in reversed(self.endpoint.peers()):
            if nbytes:
                buffer = posted.received[peer] = self.endpoint.take_buffer(nbytes)
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
            self.endpoint.return_buffer(buffer)
        super().take(arrived)

    def _add(self, parts: Sequence[Raw], out: Raw) -> None:
        assert self.squares is not None
        self.squares += combine(
            parts, self._weights, is_bfloat16=self._is_bfloat16, out=out
        )


class AllGather(Exchange):
    """Every rank's span of a bucket: of arrays, or of the mean of a reduce-scatter.

    With `reduction`, `squares` are those of the mean before it is rounded to `dtype`.
    """

    name = "all_gather"

    def __init__(
        self,
        endpoint: Endpoint,
        arrays: list[Array],
        dtype: Dtype,
        bucket: Bucket,
        reduction: ReduceScatter | None = None,
    ):
        super().__init__(endpoint, arrays, dtype, bucket)
        self._reduction = reduction

    @property
    def ready(self) -> bool:
        return self._reduction is None or self._reduction.complete

    @property
    def result(self) -> Array:
        return self._result

    def prepare(self) -> None:
        bits = np.dtype(f"u{self.dtype.size}")
        self._result = uninitialized(self.bucket.size, self.dtype)
        self._full = raw(self._result, bits)
        local = self._full[self.start : self.stop]
        if self._reduction is None:
            local[:] = raw_all(self.arrays, bits)
        else:
            encode(self._reduction.mean, self.dtype, out=local)
            self.squares = self._reduction.squares
            self._reduction = None  # and the mean's memory with it

    def post(self, start: int, stop: int) -> Round:
        posted = Round(start, stop, [])
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
