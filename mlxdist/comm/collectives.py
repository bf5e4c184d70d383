"""The contract of a transport: collectives over flat arrays, in one order.

Two transports implement it. `native` builds lazy `mx.distributed` operations, which
work on any backend and inside `mx.compile`. `mpi` calls MPI on evaluated arrays, which
is faster and adds in rank order, but can't be traced. Each world has at most one of
each, and nothing else in the package communicates.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..arrays.types import Array, Dtype
from ..layout.sharding import Bucket
from .flight_recorder import Recorder
from .reduction import Weights


@dataclass
class Traffic:
    """What one rank sends: a number of collectives, and bytes without headers.

    Counted by the thread that starts collectives and by the one that drives them.
    """

    collectives: int = 0
    bytes_sent: int = 0
    _lock: threading.Lock = field(
        default_factory=threading.Lock, init=False, repr=False, compare=False
    )

    def add(self, nbytes: int, collectives: int = 1) -> None:
        with self._lock:
            self.collectives += collectives
            self.bytes_sent += nbytes


class Pending(Protocol):
    """A collective in flight. Its buffers must live until it is finished."""

    def finish(self) -> Array:
        """Wait for it, and return its result."""

    @property
    def squares(self) -> float | None:
        """Sum of squares of this rank's span of a finished reduction.

        inf where that is not finite; None where the transport did not measure it.
        """


class Collectives(Protocol):
    """One rank's end of a transport. Every rank calls the same methods in one order.

    The array methods take arrays of one dtype that follow each other as one flat
    vector, and return 1-D arrays. `start_` methods return as early as the transport
    can; collectives may be finished in the order in which they were started.

    Attributes:
        overlaps: whether ranks can compute while they communicate.
        least_bucket: bytes below which a collective's own cost is the larger part.
        adds_in_rank_order: whether this transport adds by itself: in float32, in rank
            order, whatever dtype travels.
        gathers_in_place: whether it can gather into the memory of a given array.
    """

    name: str
    rank: int
    size: int
    traffic: Traffic
    recorder: Recorder
    overlaps: bool
    least_bucket: int
    adds_in_rank_order: bool
    gathers_in_place: bool

    def settle(self) -> None:
        """After an error: wait for what was started, and drop the errors of MLX."""

    def all_gather_words(
        self, words: NDArray[np.uint64], meanwhile: Callable[[], None] | None = None
    ) -> NDArray[np.uint64]:
        """(k,) on each rank -> (size, k) on all. Not lazy; about 3 us over MPI.

        Args:
            meanwhile: called once this rank's words are on their way. Must not raise.
        """

    def all_gather_bytes(self, data: bytes) -> list[bytes]:
        """Return every rank's bytes, of any length, in rank order. Not lazy."""

    def broadcast(self, array: Array, root: int) -> Array:
        """Return the root's array on every rank; shape and dtype agree. Not lazy."""

    def start_reduce_scatter(
        self,
        parts: Sequence[Array],
        bucket: Bucket,
        weights: Weights,
        dtype: Dtype = None,
    ) -> Pending:
        """Arrays of bucket.size elements -> this rank's span of the weighted mean.

        A transport that adds by itself rounds it to `dtype`; None: to none.
        """

    def start_all_gather(
        self, parts: Sequence[Array], bucket: Bucket, into: Array = None
    ) -> Pending:
        """Arrays that are this rank's span -> (bucket.size,).

        Args:
            into: an array of the bucket's size that is overwritten, and has this rank's
                span. Only where `gathers_in_place`.
        """

    def start_all_reduce(
        self, parts: Sequence[Array], bucket: Bucket, weights: Weights, dtype: Dtype
    ) -> Pending:
        """Arrays of bucket.size elements -> the weighted mean, on every rank.

        A transport that adds by itself rounds it to `dtype`; `native` adds in the
        arrays' dtype and returns the mean in it.
        """

    def sum_scalar(self, value: Array) -> Array:
        """Return the sum of one float32 number over the ranks, the same bits on all."""

    def reduce_scatter_bytes(
        self, bucket: Bucket, item_size: int, *, pairwise: bool
    ) -> int:
        """Bytes that this rank sends in `start_reduce_scatter`."""

    def all_gather_bytes_sent(self, bucket: Bucket, item_size: int) -> int:
        """Bytes that this rank sends in `start_all_gather`."""

    def all_reduce_bytes(
        self, bucket: Bucket, item_size: int, mean_item_size: int, *, pairwise: bool
    ) -> int:
        """Bytes that this rank sends in `start_all_reduce`."""
