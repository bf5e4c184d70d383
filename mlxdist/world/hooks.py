"""Hooks of the process that the guard needs, in line with those of the user.

What was there before is called too, what is set later wins, and `remove` restores the
process. SIGTERM is noticed at once, even while the main thread is inside MPI, where it
can't run Python. Python's wake-up descriptor would do that, but it belongs to asyncio.
So `faulthandler` writes to a pipe instead: its handler in C is replaced as soon as the
user sets another one.
"""

from __future__ import annotations

import contextlib
import faulthandler
import io
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from types import FrameType, TracebackType

from ..launcher.standard_streams import flush_in_time, print_in_time
from ..launcher.visible_text import visible_lines

_PRINT_TIMEOUT = 0.5  # seconds for a paused reader to go on

OnException = Callable[[BaseException, bool], object]


class ExceptionHook:
    """`sys.excepthook`: calls the hook that was there, then `on_exception`.

    Args:
        on_exception: called with the error, and with whether a hook of the user has
            reported it.
    """

    def __init__(self, on_exception: OnException) -> None:
        self._on_exception = on_exception
        self._previous = sys.excepthook
        self._hook = self._call  # one object, to be compared by identity
        sys.excepthook = self._hook

    def remove(self) -> None:
        """Restore the previous hook, unless another one was set since."""
        if sys.excepthook is self._hook:
            sys.excepthook = self._previous

    def missed_error(self) -> BaseException | None:
        """Return the error that ends the program and that only a later hook has got."""
        if sys.excepthook is self._hook or hasattr(sys, "ps1"):  # or interactive
            return None
        error: BaseException | None = getattr(sys, "last_value", None)
        return error

    def _call(
        self,
        kind: type[BaseException],
        error: BaseException,
        trace: TracebackType | None,
    ) -> None:
        is_users = self._previous is not sys.__excepthook__
        if is_users:
            try:
                self._previous(kind, error, trace)
            except BaseException:
                log("Error in sys.excepthook:\n" + traceback.format_exc())
        self._on_exception(error, is_users)


class SigtermHook:
    """SIGTERM's handler, where the user has none and this is the main thread.

    Args:
        on_sigterm: called in the main thread, as soon as that runs Python; also by a
            later handler that calls the one that was there before.
        wake_fd: gets bytes as soon as the signal arrives.
    """

    def __init__(self, on_sigterm: Callable[[], object], wake_fd: int) -> None:
        self._on_sigterm = on_sigterm
        self._handler = self._handle
        self.installed = (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        )
        if self.installed:
            signal.signal(signal.SIGTERM, self._handler)
            faulthandler.register(
                signal.SIGTERM, file=wake_fd, all_threads=False, chain=True
            )

    @property
    def is_current(self) -> bool:
        """Whether no other handler was set since."""
        return signal.getsignal(signal.SIGTERM) is self._handler

    def remove(self) -> None:
        """Restore the default, unless another handler was set since."""
        if not self.installed:
            return
        self.installed = False
        handler = (
            signal.SIG_DFL if self.is_current else signal.getsignal(signal.SIGTERM)
        )
        faulthandler.unregister(signal.SIGTERM)
        with contextlib.suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGTERM, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._on_sigterm()


def enable_faulthandler() -> None:
    """Have crashes print the Python stacks, unless the user has arranged that."""
    for stream in (sys.stderr, sys.__stderr__):
        if stream is None or faulthandler.is_enabled():
            continue
        # Notebooks and loggers replace standard error by objects without a descriptor.
        with contextlib.suppress(Exception):
            faulthandler.enable(stream)


def log(text: str) -> None:
    """Write to standard error at once, wherever that leads; never fail or hang.

    Control characters are escaped: parts may come from other ranks.
    """
    stream = sys.stderr
    if stream is None or isinstance(stream, io.StringIO):  # ends with this process
        stream = sys.__stderr__
    print_in_time(visible_lines(text), stream, timeout=_PRINT_TIMEOUT)


def flush_output() -> None:
    """Flush standard output and standard error, if they are there, open and read."""
    for stream in (sys.stdout, sys.stderr):
        flush_in_time(stream, timeout=_PRINT_TIMEOUT)
