"""Rank 0's parameters in each step, where `init` could not send them before."""

from __future__ import annotations

from ..arrays.types import Array, Flat
from ..comm.collectives import Collectives
from ..comm.wire import Wire
from ..layout.entries import Entry
from ..layout.sharding import Bucket
from .local_shard import Stepped
from .local_update import LocalUpdate, ShardStep


class FromRoot:
    """A local update that starts from rank 0's parameters.

    So the ranks have the same parameters after the first step, whatever each began
    with. Lazy, for `mx.compile`. Sends 2(N-1)/N bytes a byte of parameters.
    """

    is_compiled = False

    def __init__(self, update: LocalUpdate, wire: Wire):
        self._update, self._wire = update, wire

    def unchanged(self, index: int, parameters: Flat) -> Stepped:
        return self._update.unchanged(index, parameters)

    def begin(self, parameters: Flat, scale: Array | None) -> ShardStep:
        for bucket in self._wire.plan.buckets:
            parameters |= _from_root(self._wire.comm, bucket.entries, parameters)
        return self._update.begin(parameters, scale)


def _from_root(comm: Collectives, entries: tuple[Entry, ...], arrays: Flat) -> Flat:
    """Send arrays of one dtype. They are all of rank 0's share of a bucket."""
    bucket = Bucket(entries, comm.size, (0,) * len(entries))
    parts = [arrays[entry.path] for entry in entries] if comm.rank == 0 else []
    flat = comm.start_all_gather(parts, bucket).finish()
    return {
        entry.path: flat[offset : offset + entry.size].reshape(entry.shape)
        for entry, offset in zip(entries, bucket.offsets, strict=False)
    }
