"""The exchanges of the host transport: a sum-scatter, and an all-gather.

Each rank sends each owner its part as bytes, and owners add what they get: in float32,
in rank order, whatever travelled. The gather is the same the other way round (pairwise
exchange: Thakur, Rabenseifner, Gropp, IJHPCA 2005, section 4).

An exchange goes in rounds, so that what arrives is added while it is still in the
cache, and so that buffers are bounded; progress.py says when.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import mlx.core as mx
import numpy as np

from ..arrays.numpy_view import NUMPY, Raw, blank, decode, encode, raw, raw_all
from ..arrays.pairwise_sum import tree_sum
from ..arrays.types import Array
from ..layout.entries import split_counts
from .collectives import Traffic, Weights
from .flight_recorder import Recorder

# A round moves at most this much from each rank to each other one. It is added up, or
# handed on, while it is in the second-level cache or not far from it.
MESSAGE_BYTES = 2**20
# Elements that are added at once: the sum of a block stays in the second-level cache.
BLOCK = 64 * 1024


class Line(Protocol):
    """What an exchange needs of its transport."""

    rank: int
    size: int
    traffic: Traffic
    recorder: Recorder

    def peers(self) -> list[int]: ...
    def send(self, part: Raw, peer: int) -> Any: ...
    def receive(self, part: Raw, peer: int) -> Any: ...
    def inbox(self, nbytes: int) -> Raw: ...
    def give_back(self, inbox: Raw) -> None: ...
    def finish(self, exchange: Exchange) -> None: ...


@dataclass
class Round:
    """Part [start, stop) of every chunk, on its way."""

    start: int
    stop: int
    requests: list[Any]
    inbox: dict[int, Raw] = field(default_factory=dict)


class Exchange:
    """One bucket's exchange. Its arrays, laid end to end, may be lazy until `begin`."""

    name = ""
    squares: float | None = None

    def __init__(self, line: Line, arrays: list[Array], dtype: Any, bucket: Any):
        self.line = line
        self.arrays = arrays
        self.dtype = dtype
        self.bucket = bucket
        nbytes = sum(array.nbytes for array in arrays)
        self.record = line.recorder.started(self.name, bucket.size, str(dtype), nbytes)
        self.spans = [bucket.span(rank) for rank in range(line.size)]
        self.own, self.end = self.spans[line.rank]
        longest = max(stop - start for start, stop in self.spans)
        per_round = max(1, MESSAGE_BYTES // dtype.size)
        self.todo = deque(split_counts(longest, per_round))
        self.left = len(self.todo)
        self._begun = False
        self.finished = threading.Event()
        line.traffic.add(0)

    @property
    def done(self) -> bool:
        return self.left == 0

    @property
    def ready(self) -> bool:
        """Whether what it sends is there, once its arrays are evaluated."""
        return True

    def finish(self) -> Array:
        """Waits for it, and returns what it was started for."""
        raise NotImplementedError

    def begin(self) -> None:
        """Called before each round, with the arrays evaluated; acts on the first."""
        if not self._begun:
            self._begun = True
            self.prepare()

    def prepare(self) -> None:
        """Looks at the arrays' memory, and makes room for the result."""
        raise NotImplementedError

    def post(self, start: int, stop: int) -> Round:
        """Starts to send and receive a round."""
        raise NotImplementedError

    def take(self, arrived: Round) -> None:
        """Does what is to be done with a round that has arrived."""
        self.left -= 1
        if self.done:
            self.record.end = time.time()
            self.finished.set()

    def clip(self, rank: int, start: int, stop: int) -> tuple[int, int]:
        """A round's part of a rank's span, in elements of the whole bucket."""
        begin, end = self.spans[rank]
        return min(begin + start, end), min(begin + stop, end)


class SumScatter(Exchange):
    """This rank's span of the weighted mean, in float32, and its sum of squares."""

    name = "sum_scatter"

    def __init__(
        self,
        line: Line,
        arrays: list[Array],
        dtype: Any,
        bucket: Any,
        weights: Weights,
        *,
        measures: bool = True,
    ):
        super().__init__(line, arrays, dtype, bucket)
        self.measures = measures
        self.is_bfloat16 = dtype == mx.bfloat16
        self.wide = mx.float64 if dtype == mx.float64 else mx.float32
        self.weights = weights
        self.measured = 0.0

    def prepare(self) -> None:
        self.source = raw_all(self.arrays, NUMPY[self.dtype])
        self.result = blank(self.end - self.own, self.wide)
        self.mean = raw(self.result, NUMPY[self.wide])

    def post(self, start: int, stop: int) -> Round:
        own_start, own_stop = self.clip(self.line.rank, start, stop)
        posted = Round(own_start - self.own, own_stop - self.own, [])
        nbytes = (own_stop - own_start) * self.source.itemsize
        for peer in reversed(self.line.peers()):
            if nbytes:
                inbox = posted.inbox[peer] = self.line.inbox(nbytes)
                posted.requests.append(self.line.receive(inbox[:nbytes], peer))
        for peer in self.line.peers():
            first, last = self.clip(peer, start, stop)
            if first < last:
                posted.requests.append(self.line.send(self.source[first:last], peer))
        return posted

    def take(self, arrived: Round) -> None:
        size = arrived.stop - arrived.start
        own = self.source[self.own + arrived.start : self.own + arrived.stop]
        parts = [
            own
            if rank == self.line.rank or not size
            else arrived.inbox[rank][: own.nbytes].view(own.dtype)
            for rank in range(self.line.size)
        ]
        # What is not finite is found by its norm, and named.
        with np.errstate(over="ignore", invalid="ignore"):
            for start in range(0, size, BLOCK):
                stop = min(start + BLOCK, size)
                block = self.mean[arrived.start + start : arrived.start + stop]
                self.add(block, [part[start:stop] for part in parts])
        for inbox in arrived.inbox.values():
            self.line.give_back(inbox)
        super().take(arrived)

    def add(self, block: Raw, parts: Sequence[Raw]) -> None:
        every, total = self.weights.every, self.weights.total
        assert every is not None, "the host transport knows all weights"
        wanted = [  # a rank without examples may well have sent nan
            decode(part, self.is_bfloat16, block.dtype)
            if weight == 1
            else decode(part, self.is_bfloat16, block.dtype) * block.dtype.type(weight)
            for part, weight in zip(parts, every, strict=True)
            if weight
        ]
        if self.weights.in_tree:
            wanted = [tree_sum(wanted)]
        if len(wanted) == 1:
            block[:] = wanted[0]
        else:
            np.add(wanted[0], wanted[1], out=block)
        for numbers in wanted[2:]:
            block += numbers
        if total != 1:
            block /= block.dtype.type(total)
        if self.measures:
            self.measured += sum_of_squares(block)

    def finish(self) -> Array:
        self.line.finish(self)
        self.squares = self.measured if self.measures else None
        return self.result


class AllGather(Exchange):
    """Every rank's span of a bucket: of arrays, or of the mean that `after` gives.

    Then `squares` are those of the mean's own span, before it is rounded to `dtype`.
    """

    name = "all_gather"

    def __init__(
        self,
        line: Line,
        arrays: list[Array],
        dtype: Any,
        bucket: Any,
        after: SumScatter | None = None,
    ):
        super().__init__(line, arrays, dtype, bucket)
        self.after = after

    @property
    def ready(self) -> bool:
        return self.after is None or self.after.done

    def prepare(self) -> None:
        bits = np.dtype(f"u{self.dtype.size}")
        self.result = blank(self.bucket.size, self.dtype)
        self.full = raw(self.result, bits)
        own = self.full[self.own : self.end]
        if self.after is None:
            own[:] = raw_all(self.arrays, bits)
        else:
            encode(self.after.mean, self.dtype, out=own)
            self.squares = self.after.measured if self.after.measures else None
            self.after = None  # and the mean's memory with it

    def post(self, start: int, stop: int) -> Round:
        posted = Round(start, stop, [])
        for peer in reversed(self.line.peers()):
            first, last = self.clip(peer, start, stop)
            if first < last:
                inbox = self.full[first:last]
                posted.requests.append(self.line.receive(inbox, peer))
        first, last = self.clip(self.line.rank, start, stop)
        for peer in self.line.peers():
            if first < last:
                posted.requests.append(self.line.send(self.full[first:last], peer))
        return posted

    def finish(self) -> Array:
        self.line.finish(self)
        return self.result


def sum_of_squares(numbers: Raw) -> float:
    """Of a vector; inf where a number or a square is not finite."""
    total = 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, numbers.size, BLOCK):
            block = numbers[start : start + BLOCK]
            total += float(np.dot(block, block))
    return total if math.isfinite(total) else math.inf
