"""What every transport offers: collectives over flat arrays, in one order.

Two transports offer it. `native` builds lazy `mx.distributed` operations, which work
on any backend and inside `mx.compile`; `host` calls MPI on evaluated arrays, which is
faster and adds in rank order, but can't be traced. Each world has one of each at most,
and nothing else in the package communicates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..arrays.pairwise_sum import tree_sum
from ..arrays.types import Array
from ..layout.sharding import Bucket
from .flight_recorder import Recorder


@dataclass
class Traffic:
    """What one rank sends: collectives over arrays, and bytes without headers."""

    collectives: int = 0
    bytes_sent: int = 0

    def add(self, nbytes: int, collectives: int = 1) -> None:
        self.collectives += collectives
        self.bytes_sent += nbytes


class Weights(NamedTuple):
    """How much each rank's gradients count in the mean.

    `own` may be an array that `mx.compile` traces; `every` is then None, since the
    others' weights are not known before the step runs, and `total` an array. `in_tree`
    adds the ranks in a binary tree, see binary_tree.py, and not one after the other.
    """

    own: Any
    every: tuple[float, ...] | None
    total: Any
    in_tree: bool = False

    @classmethod
    def known(cls, rank: int, every: Sequence[float]) -> Weights:
        """Those that all ranks know."""
        return cls(every[rank], tuple(every), sum(every))

    @classmethod
    def of_sums(cls, every: Sequence[float], *, in_tree: bool) -> Weights:
        """For gradients that are weighted sums already, with these weights."""
        total = tree_sum(every) if in_tree else sum(every)
        return cls(1.0, (1.0,) * len(every), total, in_tree)


class Pending(Protocol):
    """A collective under way. Its buffers must live until it is finished."""

    def finish(self) -> Array:
        """Waits for it, and returns the array it was started for."""

    @property
    def squares(self) -> float | None:
        """Of a sum that is finished: the sum of squares of this rank's span of it.

        inf where that is not finite; None where it was not measured.
        """


class Collectives(Protocol):
    """One rank's end of the wire. Every rank calls the same methods in the same order.

    The array methods take arrays of one dtype, which follow each other as one flat
    vector, and give 1-D arrays. `start_` methods return at once, as far
    as the transport can; they may be finished in the order in which they were started.
    """

    name: str
    rank: int
    size: int
    traffic: Traffic
    recorder: Recorder
    overlaps: bool  # whether to compute and to communicate at the same time

    def all_gather_words(self, words: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """(k,) on each rank -> (size, k) on all. Not lazy; about 3 us on `host`."""

    def all_gather_bytes(self, data: bytes) -> list[bytes]:
        """Every rank's bytes, of any length, in rank order. Not lazy."""

    def broadcast(self, array: Array, root: int) -> Array:
        """The root's array on every rank, where shape and dtype are the same. Eager."""

    def start_sum_scatter(
        self, parts: Sequence[Array], bucket: Bucket, weights: Weights
    ) -> Pending:
        """Arrays of bucket.size elements -> this rank's span of the weighted mean.

        `host` sends (N-1)/N of the array's bytes and adds in float32; `native` adds in
        the array's dtype and sends twice that where MLX has no reduce-scatter.
        """

    def start_all_gather(self, parts: Sequence[Array], bucket: Bucket) -> Pending:
        """Arrays that are this rank's span -> (bucket.size,).

        Sends N-1 times the span's bytes.
        """

    def start_all_sum(
        self, parts: Sequence[Array], bucket: Bucket, weights: Weights, dtype: Any
    ) -> Pending:
        """Arrays of bucket.size elements -> the weighted mean, on every rank.

        `host` rounds it to `dtype`, and sends as a sum-scatter and an all-gather of
        that do; `native` adds in the arrays' dtype, and gives the mean in it.
        """

    def sum_scalar(self, value: Array) -> Array:
        """The sum of one float32 number over the ranks, the same bits on all."""
