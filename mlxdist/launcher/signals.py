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
    signal.SIGTSTP,  # it stops the ranks; this process stops after them
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
        self._is_forwarding = False
        self._send: Callable[[int], object] | None = None
        self._former: dict[int, Handler] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            self._install(ENDING, self.end)
            self._install(FORWARDED, self._forward)
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
        if self._is_forwarding:  # a handler within the loop below
            return
        self._is_forwarding = True
        while self._send is not None and self._to_forward:
            number, began = self._to_forward.pop(0), time.monotonic()
            self._send(number)
            if number == signal.SIGTSTP and signal.SIGCONT not in self._to_forward:
                os.kill(os.getpid(), signal.SIGSTOP)  # until SIGCONT
                self.suspended += time.monotonic() - began
        self._is_forwarding = False

    def _install(self, numbers: tuple[signal.Signals, ...], handler: Handler) -> None:
        for number in numbers:
            former = signal.getsignal(number)
            if former is not signal.SIG_IGN:
                self._former[number] = former
                signal.signal(number, handler)

    def _forward(self, number: int, _frame: FrameType | None) -> None:
        self._to_forward.append(number)
        self.forward_to(self._send)
