"""The line of the user's code in a traceback or a stack, which reports name first.

Standard library only: a rank's program uses it before the package exists.
"""

from __future__ import annotations

import os
import site
import sysconfig
from collections.abc import Iterable, Sequence
from traceback import FrameSummary


def _folders(*paths: str | None) -> tuple[str, ...]:
    return tuple(os.path.join(os.path.realpath(path), "") for path in paths if path)


_PYTHON = _folders(*map(sysconfig.get_path, ("stdlib", "platstdlib")))
_INSTALLED = _folders(
    *map(sysconfig.get_path, ("purelib", "platlib")), *site.getsitepackages()
)
# Never the cause: mlxdist, and MLX, which calls the user's functions.
_CALLED = _folders(os.path.dirname(os.path.dirname(__file__)))
_CALLED += tuple(os.path.join(folder, "mlx", "") for folder in _INSTALLED)


def user_frame(frames: Iterable[FrameSummary]) -> FrameSummary | None:
    """Return the innermost frame of the user's code.

    Frames of mlxdist, of the standard library and of installed packages are not the
    user's. Where the whole program is an installed package, its innermost frame counts.

    Args:
        frames: from the outermost to the innermost, as `traceback.extract_tb` and
            `traceback.extract_stack` return them.

    Returns:
        None where there is neither.
    """
    innermost_first = list(frames)[::-1]
    for is_wanted in (is_user_file, _is_installed_program):
        for frame in innermost_first:
            if is_wanted(frame.filename):
                return frame
    return None


def user_location(frames: Iterable[FrameSummary]) -> str:
    """Return the file, line and function of `user_frame`: `train.py:12, in main`.

    Returns:
        "" where there is no such frame.
    """
    frame = user_frame(frames)
    if frame is None:
        return ""
    return f"{_short_path(frame.filename)}:{frame.lineno}, in {frame.name}"


def skip_start(frames: Sequence[FrameSummary]) -> Sequence[FrameSummary]:
    """Return a stack from the first frame of the user's code on.

    The frames before it start the script. Where no frame is the user's, return all.
    """
    for index, frame in enumerate(frames):
        if is_user_file(frame.filename):
            return frames[index:]
    return frames


def is_user_file(path: str) -> bool:
    """Return whether a frame's file is not of a library. `<stdin>` is the user's."""
    if path.startswith("<"):
        return not path.startswith("<frozen ")
    return not os.path.realpath(path).startswith(_PYTHON + _INSTALLED + _CALLED)


def _is_installed_program(path: str) -> bool:
    real = os.path.realpath(path)
    return real.startswith(_INSTALLED) and not real.startswith(_CALLED)


def _short_path(path: str) -> str:
    """Return the path relative to the current folder, if it is in there."""
    try:
        relative = os.path.relpath(path)
    except (OSError, ValueError):  # the folder is gone; another drive
        return path
    return path if path.startswith("<") or relative.startswith("..") else relative
