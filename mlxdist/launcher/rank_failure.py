"""What a rank reports of its failure: the reason, the user's line, and the traceback.

`mlxdist run` prints it once, also where many ranks fail the same way. `rank_main` loads
this file before the package exists: standard library only.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from . import marks
from .user_frames import user_frame

USAGE_ERROR = 2  # exit code of argparse, and of most programs

# The name of this module in a rank's program, which has a package of its own.
_IN_PROGRAM = "_mlxdist_rank.rank_failure"

ExitHandler = Callable[[SystemExit, int], object]
exit_handlers: list[ExitHandler] = []


def on_exit(handler: ExitHandler) -> Callable[[], object]:
    """Have a rank of `mlxdist run` call a handler where its script exits with a code.

    The process ends after it. It is not called for 0, and for a wrong command line.

    Args:
        handler: called with the exception, and with the exit code of the process.

    Returns:
        A function that removes the handler.
    """
    program = sys.modules.get(_IN_PROGRAM)
    handlers: list[ExitHandler] = program.exit_handlers if program else []
    handlers.append(handler)
    return handlers.clear


def report_error(error: BaseException, rank: str) -> None:
    """Leave the marks of an exception, or print it where that can't be done."""
    try:
        marks.leave_mark("failed", rank, _reason(error))
        marks.leave_mark("location", rank, _location(error))
        text = "".join(traceback.format_exception(error))
        if _is_default_report() and marks.leave_mark("traceback", rank, text):
            return
    except OSError:  # the disk of the marks is full
        pass
    sys.excepthook(type(error), error, error.__traceback__)


def report_exit(leaving: SystemExit, rank: str) -> int:
    """Leave the marks of `sys.exit(code)`, and return the exit code of the process.

    A handler of `on_exit` may end the process before.
    """
    marks.leave_mark("failed", rank, f"exit {leaving.code}")
    text = _usage_error.pop() if _usage_error else None
    code = 1
    if isinstance(leaving.code, int):
        code = leaving.code & 0xFF or 1
    else:
        text = f"{leaving.code}\n"
    if text and not (
        _is_default_stderr() and marks.leave_mark("traceback", rank, text)
    ):
        print(text, end="", file=sys.stderr)
    if code != USAGE_ERROR:
        marks.leave_mark("location", rank, _location(leaving))
        for handler in exit_handlers:
            handler(leaving, code)
    return code


# The usage error of a command line, which is printed when it ends the script.
_usage_error: list[str] = []


def defer_usage_errors() -> None:
    """Have argparse keep an error until it ends the script: all ranks have the same."""
    argparse.ArgumentParser.error = _keep_usage_error  # type: ignore[method-assign, assignment]


def print_usage_error() -> None:
    """Print the error of a script that went on after it."""
    if _usage_error:
        print(_usage_error.pop(), end="", file=sys.stderr)


def _keep_usage_error(parser: argparse.ArgumentParser, message: str) -> NoReturn:
    text = f"{parser.format_usage()}{parser.prog}: error: {message}\n"
    if _is_default_stderr():
        _usage_error[:] = [text]
        parser.exit(2)
    parser.exit(2, text)


def _is_default_stderr() -> bool:
    return sys.stderr is sys.__stderr__


def _is_default_report() -> bool:
    """Return whether Python would print a traceback to this process's stderr.

    Otherwise the script wants it elsewhere, in a file of its own for example.
    """
    return sys.excepthook is sys.__excepthook__ and _is_default_stderr()


def _reason(error: BaseException) -> str:
    """Return the exception's type and message, without its notes."""
    report = traceback.TracebackException(type(error), error, None)
    report.__notes__ = None  # type: ignore[attr-defined]  # since Python 3.11
    lines = list(report.format_exception_only())
    name = type(error).__name__
    return next((x for x in reversed(lines) if name in x.partition(":")[0]), name)


def _location(error: BaseException) -> str:
    """Return the line of the user's code: `/home/me/train.py:42, in loss`."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    frame = user_frame(frames) or next(reversed(frames), None)
    if frame is None:
        return ""
    function = "" if frame.name == "<module>" else f", in {frame.name}"
    return f"{frame.filename}:{frame.lineno}{function}"
