"""Updated pieces of the parameters to whole ones, as soon as they arrive."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from ..arrays.concat import Chunk
from ..arrays.types import Array, Pieces
from ..layout.sharding import Bucket, Plan
from .collectives import Collectives, Pending
from .window import Window


class Wire(Protocol):
    """What a gather needs of `wire.Wire`, which says what each method does."""

    plan: Plan
    comm: Collectives

    @property
    def has_peers(self) -> bool: ...
    def start_gather(self, index: int, chunk: Chunk) -> Pending: ...
    def entries(self, index: int, flat: Array) -> Pieces: ...
    def entries_of_chunk(self, index: int, chunk: Chunk) -> Pieces: ...


class Whole(NamedTuple):
    """A bucket's entries, whole on every rank."""

    bucket: Bucket
    arrays: Pieces


class Gather:
    """Updated pieces to whole parameters, a window of buckets at a time."""

    def __init__(self, wire: Wire):
        self._wire = wire
        self._buckets = wire.plan.buckets
        self._window = Window(wire.plan.buckets, overlaps=wire.comm.overlaps)

    def push(self, index: int, chunk: Chunk) -> list[Whole]:
        """Send this rank's pieces of a bucket; return the buckets that are whole."""
        if not self._wire.plan.sharded or not self._wire.has_peers:
            entries = self._wire.entries_of_chunk(index, chunk)
            return [Whole(self._buckets[index], entries)]
        self._window.push(index, self._wire.start_gather(index, chunk))
        whole = []
        while self._window.is_full:
            whole.append(self._pop())
        return whole

    def rest(self) -> list[Whole]:
        """Return the buckets that are still in flight."""
        return [self._pop() for _ in range(len(self._window))]

    def _pop(self) -> Whole:
        index, _, flat = self._window.finish()
        return Whole(self._buckets[index], self._wire.entries(index, flat))
