"""All-gathers of parameters that go on behind the next forward pass.

`update()` returns once this rank's shard is stepped and its messages are queued. The
new parameters are lazy arrays, and a layer of the next forward pass starts as soon as
its own have arrived: those of the first layers are sent first.

Buckets are gathered in groups, since MLX blocks its caller once about 100 operations
are queued on CPU streams. Each rank sends the others one row of bytes for each group:
its spans of the group's buckets. Parameters are cut from the rows that arrive. One that
is whole in a row is a view of it; one that is spread over rows is copied together, when
it is first needed.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from ..arrays import device
from ..arrays.concat import Chunk
from ..arrays.dtypes import dtype_of
from ..arrays.numpy_view import raw, uninitialized
from ..arrays.types import Array, Pieces, Raw
from ..layout.entries import ITEM_SIZES, Entry
from ..layout.sharding import Bucket
from .collectives import Collectives, Traffic
from .gather import Slot, Whole
from .peer_streams import PeerStreams

# With more ranks one group would be too many operations to queue.
MOST_RANKS = 8
_MOST_GROUPS = 6
_QUEUED = 84  # operations of one step's messages: leaves some to the forward pass
_PER_MESSAGE = 6  # of sending one and receiving one
_ALIGNMENT = 8  # bytes, of a bucket's span in a row


class Slice(NamedTuple):
    """Bytes [start, stop) of a rank's row."""

    rank: int
    start: int
    stop: int


@dataclass(frozen=True)
class RowLayout:
    """Where each rank's row has the spans of a group of buckets.

    Attributes:
        indices: of the buckets, in the order of the rows.
        sizes: bytes of each rank's row.
        slices: of each entry of each bucket: the parts of it, in order.
        starts: of each bucket, in each rank's row.
    """

    indices: tuple[int, ...]
    sizes: tuple[int, ...]
    slices: dict[int, list[list[Slice]]]
    starts: dict[int, list[int]]

    @classmethod
    def of(cls, indices: Sequence[int], buckets: Sequence[Bucket]) -> RowLayout:
        """Lay out the rows of the buckets with these indices."""
        ranks = buckets[0].ranks
        sizes = [0] * ranks
        slices, starts = {}, {}
        for index in indices:
            bucket = buckets[index]
            starts[index] = list(sizes)
            slices[index] = _slices(bucket, sizes)
            for rank in range(ranks):
                first, stop = bucket.span(rank)
                nbytes = (stop - first) * ITEM_SIZES[bucket.dtype]
                sizes[rank] += -(-nbytes // _ALIGNMENT) * _ALIGNMENT
        return cls(tuple(indices), tuple(sizes), slices, starts)


def _slices(bucket: Bucket, starts: Sequence[int]) -> list[list[Slice]]:
    item = ITEM_SIZES[bucket.dtype]
    by_path: dict[object, list[Slice]] = {e.path: [] for e in bucket.entries}
    for rank, start in enumerate(starts):
        for piece in bucket.pieces(rank):
            first = start + piece.offset * item
            nbytes = (piece.stop - piece.start) * item
            by_path[piece.entry.path].append(Slice(rank, first, first + nbytes))
    return list(by_path.values())


def most_groups(ranks: int) -> int:
    """Return how many groups of buckets fit into MLX's queue; 0 for too many ranks."""
    if ranks > MOST_RANKS:
        return 0
    return min(_MOST_GROUPS, _QUEUED // (_PER_MESSAGE * (ranks - 1)))


def make_groups(nbytes: Sequence[int], most: int) -> list[range]:
    """Cut buckets into at most `most` groups of about equal bytes.

    The first one and the last one are half as large: the forward pass starts when the
    first one is there, and has the layers of the last one left when all are.
    """
    ends = [(2 * group + 1) / (2 * most - 2) for group in range(most - 1)]
    groups: list[range] = []
    start, done, total = 0, 0, sum(nbytes)
    for index, size in enumerate(nbytes):
        done += size
        is_last = index + 1 == len(nbytes)
        if is_last or (len(groups) < most - 1 and done >= ends[len(groups)] * total):
            groups.append(range(start, index + 1))
            start = index + 1
    return groups


class DeferredGathers:
    """How the buckets of one plan are gathered behind the next forward pass.

    Attributes:
        order: in which buckets are gathered: that of the layers.
    """

    def __init__(
        self, buckets: Sequence[Bucket], comm: Collectives, streams: PeerStreams
    ):
        self.buckets, self.comm, self.streams = buckets, comm, streams
        self.order = range(len(buckets))[::-1]
        nbytes = [buckets[index].nbytes for index in self.order]
        self.layouts = [
            RowLayout.of(self.order[group.start : group.stop], buckets)
            for group in make_groups(nbytes, most_groups(comm.size))
        ]

    def start(self) -> DeferredGather:
        """Start the gather of one step."""
        self.streams.wait()  # one at a time, in the streams of one thread
        return DeferredGather(self)

    def expected(self) -> Traffic:
        """Traffic of one gather of this rank."""
        traffic = Traffic()
        for layout in self.layouts:
            traffic.add(layout.sizes[self.comm.rank] * (self.comm.size - 1))
        return traffic


class DeferredGather:
    """Updated pieces to whole parameters, a group of buckets at a time.

    Attributes:
        started: buckets that were sent, or wait for the rest of their group.
    """

    def __init__(self, gathers: DeferredGathers):
        self._gathers = gathers
        self._left = deque(gathers.layouts)
        self._layout: RowLayout | None = None
        self._row: Array = None
        self._bytes: Raw = np.empty(0, np.uint8)
        self._queued: list[tuple[int, Pieces]] = []  # bytes of a group, and its rows
        self.started: set[int] = set()

    def push(self, index: int, chunk: Chunk, slot: Slot | None = None) -> list[Whole]:
        """Add this rank's pieces of a bucket, in the order of the gathers.

        Evaluates them, and sends those of a group at its last bucket.

        Returns:
            The buckets that were sent, lazy.
        """
        layout = self._layout or self._next_layout()
        start = layout.starts[index][self._gathers.comm.rank]
        mx.eval(chunk.arrays)
        for array in chunk.arrays:
            self._bytes[start : start + array.nbytes] = raw(array)
            start += array.nbytes
        is_last = index == layout.indices[-1]
        sent = self._exchange(layout) if is_last else []
        self.started.add(index)
        return sent

    def rest(self) -> list[Whole]:
        """Wait until what computes on this device may be queued behind the rest."""
        limit, began = device.longest_wait(), time.perf_counter()
        done, total = 0, sum(nbytes for nbytes, _ in self._queued)
        for nbytes, rows in self._queued:
            elapsed = time.perf_counter() - began
            if seconds_left(done, total, elapsed) <= limit:
                break
            with self._gathers.comm.recorder.waiting():
                mx.eval(rows)
            done += nbytes
        return []

    def _next_layout(self) -> RowLayout:
        layout = self._left[0]
        self._row = uninitialized(layout.sizes[self._gathers.comm.rank], mx.uint8)
        self._bytes = raw(self._row)
        self._layout = self._left.popleft()  # not where memory was short
        return layout

    def _exchange(self, layout: RowLayout) -> list[Whole]:
        gathers = self._gathers
        comm, row, nbytes = gathers.comm, self._row, sum(layout.sizes)
        self._layout, self._row, self._bytes = None, None, np.empty(0, np.uint8)
        first, last = layout.indices[0], layout.indices[-1]
        with comm.recorder.carrying(f"buckets {first} to {last}, deferred"):
            comm.recorder.started("all_gather", nbytes, "uint8", row.nbytes)
        comm.traffic.add(row.nbytes * (comm.size - 1))
        rows = gathers.streams.exchange(row, layout.sizes)
        self._queued.append((nbytes, rows))
        return [
            Whole(
                gathers.buckets[index], _entries(gathers.buckets[index], slices, rows)
            )
            for index, slices in layout.slices.items()
        ]


def seconds_left(done: int, total: int, elapsed: float) -> float:
    """Return how long the rest of a gather takes at the rate of its beginning.

    inf where nothing has arrived yet.
    """
    if done == 0:
        return 0.0 if total == 0 else float("inf")
    return elapsed * (total - done) / done


def _entries(bucket: Bucket, slices: list[list[Slice]], rows: Pieces) -> Pieces:
    """Cut a bucket's entries from every rank's row. Lazy."""
    dtype = dtype_of(bucket.dtype)

    def cut(entry: Entry, parts: list[Slice]) -> Array:
        arrays = [rows[r][start:stop].view(dtype) for r, start, stop in parts]
        flat = arrays[0] if len(arrays) == 1 else mx.concatenate(arrays)
        return flat.reshape(entry.shape)

    return [cut(*each) for each in zip(bucket.entries, slices, strict=True)]
