"""Collectives in flight, bounded in bytes."""

from __future__ import annotations

from collections import deque

from ..arrays.types import Array
from ..layout.sharding import Bucket
from .collectives import Pending

# Bytes of buckets whose collective is started and not finished: enough to keep the wire
# busy while one is packed and one is unpacked, few enough to bound the memory.
IN_FLIGHT = 16 * 2**20


class Window:
    """Collectives in flight, oldest first, bounded in bytes."""

    def __init__(self, buckets: tuple[Bucket, ...]):
        self._buckets = buckets
        self._pending: deque[tuple[int, Pending]] = deque()
        self._nbytes = 0

    def __len__(self) -> int:
        return len(self._pending)

    @property
    def is_full(self) -> bool:
        return self._nbytes > IN_FLIGHT and len(self._pending) > 1

    def push(self, index: int, pending: Pending) -> None:
        self._pending.append((index, pending))
        self._nbytes += self._buckets[index].nbytes

    def finish(self) -> tuple[int, Pending, Array]:
        """Wait for the oldest, which stays the oldest if that raises an error."""
        index, pending = self._pending[0]
        flat = pending.finish()
        self._pending.popleft()
        self._nbytes -= self._buckets[index].nbytes
        return index, pending, flat
