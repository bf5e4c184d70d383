"""Time of each phase of an update, from the calls of the flight recorder."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlxdist.comm.flight_recorder import Recorder

START = "before the exchange"
END = "evaluation afterwards"


class PhaseClock:
    """Times the phases that an update reports to a flight recorder.

    Time that a rank waits for others is counted as "waiting" as well as in the phase in
    which it waits.
    """

    def __init__(self, recorder: Recorder):
        self._recorder = recorder
        self._steps: list[dict[str, float]] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """Time the phases of one step, which the block takes."""
        recorder: Any = self._recorder
        spent: dict[str, float] = {}
        phase, call, waiting = recorder.phase, recorder.call, recorder.waiting
        name, since = START, time.perf_counter()

        def enter(new: str) -> None:
            nonlocal name, since
            now = time.perf_counter()
            spent[name] = spent.get(name, 0.0) + now - since
            name, since = new, now

        def timed_phase(new: str) -> None:
            enter(new)
            phase(new)

        @contextmanager
        def timed_call(*arguments: Any) -> Iterator[None]:
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

        recorder.phase, recorder.call = timed_phase, timed_call
        recorder.waiting = timed_waiting
        try:
            yield
            enter(START)
        finally:
            del recorder.phase, recorder.call, recorder.waiting
        self._steps.append(spent)

    def take(self) -> list[dict[str, float]]:
        """Return the seconds of each phase by step, since the last call of this."""
        steps, self._steps = self._steps, []
        return steps
