"""This process's standard streams, which may be closed, full, or read by nobody."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
import sys
from typing import TextIO

from .visible_text import message_of

_PRINT_TIMEOUT = 5.0  # seconds for a paused reader to go on


def open_all() -> None:
    """Open the null device for each of the three that is closed, as by `>&-`.

    Otherwise the next file would get its number, and what programs print.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
    for name, descriptor, mode in (
        ("stdin", 0, "r"),
        ("stdout", 1, "w"),
        ("stderr", 2, "w"),
    ):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(descriptor, mode, closefd=False))
    if isinstance(sys.stdout, io.TextIOWrapper):
        # As on standard error: what a terminal can't show is escaped, and no error.
        sys.stdout.reconfigure(errors="backslashreplace")


def discard(descriptor: int) -> None:
    """Send what is written to a descriptor from now on to the null device."""
    with contextlib.suppress(OSError):
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, descriptor)
        os.close(devnull)


def write_all(descriptor: int, data: bytes, timeout: float | None = None) -> None:
    """Write to a file descriptor, which may be one that does not block.

    Args:
        timeout: seconds for the reader to take any of it; None waits for ever.

    Raises:
        OSError: it can't be written.
        TimeoutError: the reader has taken nothing for that time.
    """
    size = len(data) if timeout is None else select.PIPE_BUF  # see `_takes_text`
    while data:
        if timeout is not None and not _takes_text(descriptor, timeout):
            raise TimeoutError(errno.ETIMEDOUT, "nobody reads it")
        try:
            data = data[os.write(descriptor, data[:size]) :]
        except BlockingIOError:
            _takes_text(descriptor, timeout)


def print_error(message: str) -> None:
    """Print a message on standard error, if anybody can read it.

    Control characters in it are escaped: parts may come from ranks and other hosts.
    """
    print_in_time(f"{message_of(message)}\n", sys.stderr, timeout=_PRINT_TIMEOUT)


def print_in_time(text: str, stream: TextIO | None, *, timeout: float) -> None:
    """Write text to a stream, and give up where it is closed, full, or not read.

    Args:
        timeout: seconds for a reader to take any of it.
    """
    size = select.PIPE_BUF // (1 if text.isascii() else 4)
    for start in range(0, len(text), size):
        with contextlib.suppress(Exception):  # a program may replace it by anything
            if stream is None or not _is_ready(stream, timeout):
                return
            stream.write(text[start : start + size])
            stream.flush()


def flush_in_time(stream: TextIO | None, *, timeout: float) -> None:
    """Flush a stream, and give up where it is closed, full, or not read."""
    with contextlib.suppress(Exception):
        if stream is not None and _is_ready(stream, timeout):
            stream.flush()


def _is_ready(stream: TextIO, timeout: float) -> bool:
    """Return whether a stream `_takes_text`."""
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError, AttributeError):  # in memory, or in a notebook
        return True
    return _takes_text(descriptor, timeout)


def _takes_text(descriptor: int, timeout: float | None) -> bool:
    """Wait until a descriptor takes PIPE_BUF bytes at once. More could block.

    Args:
        timeout: seconds; None waits for ever.

    Returns:
        Whether it does, or has an error, which the write will raise.
    """
    poll = select.poll()  # `select` takes no descriptor above 1023
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(None if timeout is None else timeout * 1000))
