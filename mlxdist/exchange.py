"""The exchange of the host transport, in rounds: a sum-scatter, or an all-gather.

Each rank sends each owner its part as bytes, and owners add what they get: in float32,
in rank order, whatever travelled. The gather is the same the other way round (pairwise
exchange: Thakur, Rabenseifner, Gropp, IJHPCA 2005, section 4).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import mlx.core as mx
import numpy as np

from .collectives import Array, Traffic, Weights, split_counts
from .memory import NUMPY, Raw, decode, raw
from .recorder import Recorder

# One round of an exchange moves at most this much in and out of a rank, and two of
# them are on the wire while a third is added up.
ROUND_BYTES = 4 * 2**20
ROUNDS_IN_FLIGHT = 2
# Elements that are added at once: the sum of a block stays in the second-level cache.
BLOCK = 32 * 1024


class Line(Protocol):
    """What an exchange needs of its transport."""

    rank: int
    size: int
    traffic: Traffic
    recorder: Recorder

    def peers(self) -> list[int]: ...
    def send(self, part: Raw, peer: int) -> Any: ...
    def receive(self, part: Raw, peer: int) -> Any: ...
    def wait(self, requests: list[Any]) -> None: ...


@dataclass
class Round:
    """Part [start, stop) of every chunk, on its way."""

    start: int
    stop: int
    requests: list[Any]
    inbox: dict[int, Raw] = field(default_factory=dict)


class Exchange:
    """An exchange in rounds, so that its buffers are bounded and rounds overlap."""

    name = ""

    def __init__(self, line: Line, array: Array, bucket: Any):
        self.line = line
        self.record = line.recorder.started(
            self.name, bucket.size, str(array.dtype), array.nbytes
        )
        self.spans = [bucket.span(rank) for rank in range(line.size)]
        self.begin, self.end = self.spans[line.rank]
        longest = max(stop - start for start, stop in self.spans)
        per_round = max(1, ROUND_BYTES // (array.itemsize * line.size))
        self.todo = deque(split_counts(longest, per_round))
        self.under_way: deque[Round] = deque()
        line.traffic.add(0)

    def clip(self, rank: int, start: int, stop: int) -> tuple[int, int]:
        """A round's part of a rank's span, in elements of the whole bucket."""
        begin, end = self.spans[rank]
        return min(begin + start, end), min(begin + stop, end)

    def fill(self) -> None:
        while self.todo and len(self.under_way) < ROUNDS_IN_FLIGHT:
            self.under_way.append(self.post(*self.todo.popleft()))

    def post(self, start: int, stop: int) -> Round:
        raise NotImplementedError

    def take(self, done: Round) -> None:
        raise NotImplementedError

    def run(self) -> None:
        self.fill()
        while self.under_way:
            done = self.under_way.popleft()
            self.line.wait(done.requests)
            self.fill()
            self.take(done)
        self.record.end = time.time()


class SumScatter(Exchange):
    name = "sum_scatter"

    def __init__(self, line: Line, flat: Array, bucket: Any, weights: Weights):
        super().__init__(line, flat, bucket)
        dtype = NUMPY[flat.dtype]
        self.is_bfloat16 = flat.dtype == mx.bfloat16
        self.weights = weights
        self.source = raw(flat, dtype)
        wide = mx.float64 if flat.dtype == mx.float64 else mx.float32
        self.result = mx.zeros(self.end - self.begin, wide)
        self.sums = raw(self.result, NUMPY[wide])
        self.fill()

    def post(self, start: int, stop: int) -> Round:
        own_start, own_stop = self.clip(self.line.rank, start, stop)
        posted = Round(own_start - self.begin, own_stop - self.begin, [])
        for peer in reversed(self.line.peers()):
            if own_start < own_stop:
                inbox = np.empty(own_stop - own_start, self.source.dtype)
                posted.inbox[peer] = inbox
                posted.requests.append(self.line.receive(inbox, peer))
        for peer in self.line.peers():
            first, last = self.clip(peer, start, stop)
            if first < last:
                posted.requests.append(self.line.send(self.source[first:last], peer))
        return posted

    def take(self, done: Round) -> None:
        own = self.source[self.begin + done.start : self.begin + done.stop]
        parts = [
            own if rank == self.line.rank else done.inbox.get(rank, own)
            for rank in range(self.line.size)
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


class AllGather(Exchange):
    name = "all_gather"

    def __init__(self, line: Line, chunk: Array, bucket: Any):
        super().__init__(line, chunk, bucket)
        dtype = np.dtype(f"u{chunk.itemsize}")
        self.source = raw(chunk, dtype)
        self.result = mx.zeros(bucket.size, chunk.dtype)
        self.full = raw(self.result, dtype)
        self.full[self.begin : self.end] = self.source
        self.fill()

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
                part = self.source[first - self.begin : last - self.begin]
                posted.requests.append(self.line.send(part, peer))
        return posted

    def take(self, done: Round) -> None:
        """What came is where it belongs."""

    def finish(self) -> Array:
        self.run()
        return self.result
