"""Time since the last report, and how much of it this rank has waited."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from ..comm.flight_recorder import Waits

# Calls that are not part of a step, even where they are not in a pause.
_BETWEEN_STEPS = ("save_checkpoint", "load_checkpoint")


class Interval:
    """A stopwatch that can be paused.

    Args:
        waits: of this rank; their sum grows.
    """

    def __init__(self, waits: Waits):
        self._waits = waits
        self.restart()

    def restart(self) -> None:
        self._start, self._waited_before = time.perf_counter(), self._total()

    @property
    def elapsed(self) -> float:
        """Seconds since the restart, without pauses."""
        return time.perf_counter() - self._start

    @property
    def waited(self) -> float:
        """Seconds of `elapsed` that this rank has waited for others."""
        return self._total() - self._waited_before

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out the body, and its waits."""
        start, waited = time.perf_counter(), self._total()
        try:
            yield
        finally:
            self._start += time.perf_counter() - start
            self._waited_before += self._total() - waited

    def _total(self) -> float:
        return self._waits.seconds(without=_BETWEEN_STEPS)
