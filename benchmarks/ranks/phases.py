"""Where the time of an update goes, by what the flight recorder is told."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

START = "before the exchange"
END = "evaluation afterwards"


class PhaseClock:
    """Times the phases of `update` as the recorder hears of them, while it runs.

    Time that a rank waits for others is counted apart, as "waiting", and is a part of
    the phase in which it waits.
    """

    def __init__(self, recorder: Any):
        self._recorder = recorder
        self._taken: list[dict[str, float]] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """For one step: phases are timed within the block, and not elsewhere."""
        recorder = self._recorder
        spent: dict[str, float] = {}
        phase, call, waiting = recorder.phase, recorder.call, recorder.waiting
        name, since = START, time.perf_counter()

        def enter(new: str) -> None:
            nonlocal name, since
            now = time.perf_counter()
            spent[name] = spent.get(name, 0.0) + now - since
            name, since = new, now

        def told(new: str) -> None:
            enter(new)
            phase(new)

        @contextmanager
        def calling(*arguments: Any) -> Iterator[None]:
            outermost = not recorder.status.call
            with call(*arguments):
                yield
            if outermost:
                enter(END)

        @contextmanager
        def timed_waiting() -> Iterator[None]:
            began = time.perf_counter()
            with waiting():
                yield
            spent["waiting"] = spent.get("waiting", 0.0) + time.perf_counter() - began

        recorder.phase, recorder.call, recorder.waiting = told, calling, timed_waiting
        try:
            yield
            enter(START)
        finally:
            del recorder.phase, recorder.call, recorder.waiting
        self._taken.append(spent)

    def take(self) -> list[dict[str, float]]:
        """Seconds by phase of each step since the last time."""
        taken, self._taken = self._taken, []
        return taken
