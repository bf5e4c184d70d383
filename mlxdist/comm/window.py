"""Collectives in flight, bounded in bytes."""

from __future__ import annotations

from collections import deque

from ..arrays.types import Array
from ..layout.buckets import IN_FLIGHT, IN_FLIGHT_IN_TURN
from ..layout.sharding import Bucket
from .collectives import Pending


class Window:
    """Collectives in flight, oldest first, bounded in bytes.

    Args:
        overlaps: whether ranks can compute while they communicate.
    """

    def __init__(self, buckets: tuple[Bucket, ...], *, overlaps: bool):
        self._buckets = buckets
        self._most = IN_FLIGHT if overlaps else min(IN_FLIGHT, IN_FLIGHT_IN_TURN)
        self._pending: deque[tuple[int, Pending]] = deque()
        self._nbytes = 0

    def __len__(self) -> int:
        return len(self._pending)

    @property
    def is_full(self) -> bool:
        return self._nbytes > self._most and len(self._pending) > 1

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
