"""This process's standard streams, which may be closed, full, or read by nobody."""

from __future__ import annotations

import contextlib
import io
import os
import select
import sys

from .visible_text import message_of


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


def write_all(descriptor: int, data: bytes) -> None:
    """Write to a file descriptor, which may be one that does not block.

    Raises:
        OSError: it can't be written.
    """
    while data:
        try:
            data = data[os.write(descriptor, data) :]
        except BlockingIOError:
            select.select([], [descriptor], [])


def print_error(message: str) -> None:
    """Print a message on standard error, if anybody can read it.

    Control characters in it are escaped: parts may come from ranks and other hosts.
    """
    with contextlib.suppress(OSError, ValueError):  # its reader is gone, or it is full
        print(message_of(message), file=sys.stderr, flush=True)
