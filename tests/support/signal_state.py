"""The signals of this process as a terminal's shell leaves them to a program.

A script's background job ignores SIGINT and SIGQUIT, nohup's program SIGHUP, and a
supervisor may block signals. Programs that tests start would inherit all of that.
"""

from __future__ import annotations

import signal

# Python ignores them, and gives programs that it starts the system's default.
_IGNORED_BY_PYTHON = {
    getattr(signal, name) for name in ("SIGPIPE", "SIGXFSZ") if hasattr(signal, name)
}


def restore() -> None:
    """Unblock all signals, and handle those that are ignored.

    A handler is not inherited by another program, which gets the default. This process
    goes on ignoring the signal: nohup still works. Python's own handler of SIGINT comes
    back, because tests look for it.
    """
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in signal.valid_signals() - _IGNORED_BY_PYTHON:
        if signal.getsignal(number) is not signal.SIG_IGN:
            continue
        is_interrupt = number == signal.SIGINT
        handler = signal.default_int_handler if is_interrupt else _ignore
        signal.signal(number, handler)


def _ignore(number: int, frame: object) -> None:
    """Do nothing."""
