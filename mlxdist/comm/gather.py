"""Updated pieces of the parameters to whole ones, as soon as they arrive."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import mlx.core as mx

from ..arrays import device
from ..arrays.concat import Chunk
from ..arrays.in_place import InPlace
from ..arrays.types import Array, Pieces, Tree
from ..layout.paths import Key
from ..layout.sharding import Bucket, Plan
from .collectives import Collectives, Pending
from .window import Window

# Bytes of a tensor from which on the other ranks' parts are received into its memory.
IN_PLACE_FROM = 2 * 2**20
Slot = tuple[Tree, Key]  # container and key of a parameter


class Wire(Protocol):
    """What a gather needs of `wire.Wire`, which says what each method does."""

    plan: Plan
    comm: Collectives

    @property
    def has_peers(self) -> bool: ...
    def start_gather(self, index: int, chunk: Chunk, into: Array) -> Pending: ...
    def entries(self, index: int, flat: Array) -> Pieces: ...
    def entries_of_chunk(self, index: int, chunk: Chunk) -> Pieces: ...


class Whole(NamedTuple):
    """A bucket's entries, whole on every rank."""

    bucket: Bucket
    arrays: Pieces


class Gather:
    """Updated pieces to whole parameters, a window of buckets at a time.

    Attributes:
        started: buckets that were sent, or are on their way. After an error none of
            them may be pushed again: the other ranks would wait for another one.
    """

    def __init__(self, wire: Wire):
        self._wire = wire
        self._buckets = wire.plan.buckets
        self._window = Window(wire.plan.buckets, overlaps=wire.comm.overlaps)
        self.started: set[int] = set()

    def push(self, index: int, chunk: Chunk, slot: Slot | None = None) -> list[Whole]:
        """Send this rank's pieces of a bucket; return the buckets that are whole.

        Args:
            slot: where the parameter is, if the bucket is one, and may be overwritten.
        """
        if not self._wire.plan.sharded or not self._wire.has_peers:
            entries = self._wire.entries_of_chunk(index, chunk)
            self.started.add(index)
            return [Whole(self._buckets[index], entries)]
        into = None if slot is None else self._overwritten(index, chunk, slot)
        self._window.push(index, self._wire.start_gather(index, chunk, into))
        self.started.add(index)
        whole = []
        while self._window.is_full:
            whole.append(self._pop())
        return whole

    def rest(self) -> list[Whole]:
        """Return the buckets that are still in flight."""
        return [self._pop() for _ in range(len(self._window))]

    def _overwritten(self, index: int, chunk: Chunk, slot: Slot) -> Array:
        """A large parameter with this rank's pieces of it, in memory of its own.

        None where it is small, or the transport does not receive into given memory.
        """
        bucket = self._buckets[index]
        arrays, (container, key) = chunk.arrays, slot
        is_tensor = len(bucket.entries) == 1 and len(arrays) == 1
        is_large = bucket.nbytes >= IN_PLACE_FROM and bucket.owners is None
        if not (is_tensor and is_large and self._wire.comm.gathers_in_place):
            return None
        old, (part,) = container[key], arrays
        if (old.dtype, old.size) != (part.dtype, bucket.size) or not device.on_cpu():
            return None
        del old
        mx.eval(part)
        first, _ = bucket.span(self._wire.comm.rank)
        InPlace(container, key).write(first, part.reshape(-1))
        return container[key]

    def _pop(self) -> Whole:
        index, _, flat = self._window.finish()
        return Whole(self._buckets[index], self._wire.entries(index, flat))
