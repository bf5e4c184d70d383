"""MPI_Finalize: run once, as the last action of a rank, and never by a forked child.

MLX calls MPI_Finalize when its last `Group` is freed. At the exit of Python that may be
too early, while MLX's thread still runs a collective, or it may never happen. Instead:

- `keep_alive` keeps every group for the life of the process, so MLX never finalizes.
- `finalize_at_exit` has the C library call MPI_Finalize, after all other handlers.
- A forked child inherits that C handler, but MPI belongs to its parent, so the child
  leaves ahead of the handlers that it has inherited.
"""

from __future__ import annotations

import atexit
import ctypes
import math
import os
import sys
from types import TracebackType
from typing import NoReturn

from .hooks import flush_output

# Seconds that MPI_Finalize may take at least: exit handlers of other ranks may be slow.
FINALIZE_TIMEOUT = 300.0


def finalize_at_exit(library: str) -> None:
    """Register MPI_Finalize of a libmpi with the C library. Called before MPI starts.

    C exit handlers run in reverse order of registration, so this one runs last.
    """
    finalize = ctypes.cast(ctypes.CDLL(library).MPI_Finalize, ctypes.c_void_p)
    _at_c_exit(finalize)
    os.register_at_fork(after_in_child=_skip_inherited_handlers)


def limit_finalize(seconds: float) -> None:
    """Have SIGALRM end this process if MPI_Finalize takes longer than some seconds.

    It waits for all ranks, and nothing watches them any more: one may be stopped.
    Called once MPI has started, so that the alarm is set just before MPI_Finalize.
    """
    alarm = ctypes.cast(ctypes.CDLL(None).alarm, ctypes.c_void_p)
    _at_c_exit(alarm, math.ceil(seconds))


def _at_c_exit(function: ctypes.c_void_p, argument: int | None = None) -> None:
    register = ctypes.CDLL(None).__cxa_atexit
    register.argtypes = [ctypes.c_void_p] * 3
    register(function, argument, None)


def keep_alive(group: object) -> None:
    """Keep an MLX group until the process is gone.

    A pending collective crashes if its group is freed, and freeing a group after
    MPI_Finalize aborts the process.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(group))


def _skip_inherited_handlers() -> None:
    """Make this forked child exit ahead of the C exit handlers of its parent."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "on_exit"):  # macOS, musl
        _ForkedChildExit().install()
        return
    # Handlers run in reverse order: fflush(NULL), then _exit with the exit code.
    libc.on_exit.argtypes = [ctypes.c_void_p] * 2
    libc.on_exit(ctypes.cast(libc._exit, ctypes.c_void_p), None)
    _at_c_exit(ctypes.cast(libc.fflush, ctypes.c_void_p))


class _ForkedChildExit:
    """Hooks that note the exit code of the process and leave through `os._exit`."""

    def __init__(self) -> None:
        self._code = 0
        self._previous = sys.excepthook

    def install(self) -> None:
        sys.exit = self._exit  # an exit handler can't see the code otherwise
        sys.excepthook = self._on_exception
        atexit.register(self._leave)

    def _exit(self, code: object = None, /) -> NoReturn:
        self._code = code if isinstance(code, int) else int(code is not None)
        raise SystemExit(code)

    def _on_exception(
        self,
        kind: type[BaseException],
        error: BaseException,
        trace: TracebackType | None,
    ) -> None:
        self._code = 1
        self._previous(kind, error, trace)

    def _leave(self) -> NoReturn:
        flush_output()
        os._exit(self._code & 0xFF)
