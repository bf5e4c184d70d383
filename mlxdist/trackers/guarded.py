"""Trackers that may fail: a network that is gone must not end the training."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..comm.agreement import error_text
from ..optim.user_warning import warn_user
from .tracker import Tracker


class Guarded:
    """A tracker whose errors are warnings: one for the first report that it misses."""

    def __init__(self, tracker: Tracker):
        self._tracker = tracker
        self._has_warned = False

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._call(
            f"the report of step {step}", lambda: self._tracker.log(step, values)
        )

    def finish(self) -> None:
        self._call("the end of the run", self._tracker.finish)

    def _call(self, what: str, call: Callable[[], object]) -> None:
        try:
            call()
        except Exception as error:
            if not self._has_warned:
                self._has_warned = True
                warn_user(
                    f"{type(self._tracker).__name__} has missed {what}, and training "
                    f"goes on; no later error of it is shown: {error_text(error)}"
                )
