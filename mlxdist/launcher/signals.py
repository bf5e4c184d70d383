"""Signals of `mlxdist run`: those that end the job, and those that go to the ranks."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType

Handler = Callable[[int, FrameType | None], object] | int | signal.Handlers | None

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
# mpirun sends these to the ranks. It does nothing else with them.
FORWARDED = (
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
    signal.SIGURG,
    signal.SIGCONT,
)


class Signals:
    """Handlers of this process while it is entered; the former ones come back then.

    An ignored signal stays ignored, as with nohup and in the background of a script.
    Outside the main thread, Python allows no handlers.

    Attributes:
        received: the first signal of ENDING.
        received_at: when it came, by time.monotonic().
        repeated: whether another one came since.
        suspended: seconds for which this process was stopped, as after Ctrl-Z.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.received_at = 0.0
        self.repeated = False
        self.suspended = 0.0
        self._to_forward: list[int] = []
        self._send: Callable[[int], object] | None = None
        self._former: dict[int, Handler] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            self._install(ENDING, self.end)
            self._install(FORWARDED, self._forward)
            self._install((signal.SIGTSTP,), self._suspend)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def end(self, number: int, _frame: FrameType | None = None) -> None:
        """Note that the job is to end."""
        if self.received is None:
            self.received, self.received_at = number, time.monotonic()
        else:
            self.repeated = True

    def forward_to(self, send: Callable[[int], object] | None) -> None:
        """Set the function that sends a signal to mpirun; None keeps them back."""
        self._send = send
        while send is not None and self._to_forward:
            send(self._to_forward.pop(0))

    def _install(self, numbers: tuple[signal.Signals, ...], handler: Handler) -> None:
        for number in numbers:
            former = signal.getsignal(number)
            if former is not signal.SIG_IGN:
                self._former[number] = former
                signal.signal(number, handler)

    def _forward(self, number: int, _frame: FrameType | None = None) -> None:
        self._to_forward.append(number)
        self.forward_to(self._send)

    def _suspend(self, number: int, _frame: FrameType | None) -> None:
        """Stop the ranks, then this process, until SIGCONT."""
        began = time.monotonic()
        self._forward(number)
        os.kill(os.getpid(), signal.SIGSTOP)
        self.suspended += time.monotonic() - began
