"""The folder of MLX's compiled kernels, which must belong to this user.

On a CPU, MLX compiles kernels into a folder `mlx` in the folder for temporary files,
and loads libraries that it finds there, whoever put them there. MLX has no setting for
it, and reads TMPDIR whenever it needs a kernel.

`rank_main` loads this file before the package exists: standard library only.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from . import environment
from .private_files import make_private, others_may_write, user_folder, user_name

_NAME = "mlx"


def protect() -> str:
    """Have this process load kernels only from a folder that is this user's alone.

    It is `mlx` in the folder for temporary files, with mode 700. Where that is another
    user's, or holds something of theirs, MLX gets a folder of this user's: TMPDIR
    changes for MLX and for processes that this one starts, and not in `os.environ`.

    Returns:
        A warning where MLX got another folder, "" otherwise.

    Raises:
        PermissionError: no folder belongs to this user alone.
    """
    parent = Path(environment.native_temporary_folder())
    try:
        problem = _usual_problem(parent)
        if not problem:
            return ""
        can_be_made = True
    except OSError as error:
        problem, can_be_made = f"{parent}: {error.strerror}", False
    try:
        folder = user_folder()
        reason = _problem(folder / _NAME)
        if reason:
            raise PermissionError(f"{reason}; remove {folder / _NAME}")
    except OSError as error:
        if not can_be_made:  # there, MLX can't compile either
            return ""
        raise PermissionError(
            f"MLX would run compiled kernels of other users: {problem}. {error}"
        ) from None
    environment.set_native_temporary_folder(str(folder))
    return f"MLX compiles kernels into {folder / _NAME}, because {problem}"


def _usual_problem(parent: Path) -> str:
    if not (parent.is_absolute() and os.path.isdir(parent)):
        return f"{parent}, the folder for temporary files, is none"
    return _problem(parent / _NAME)


def _problem(folder: Path) -> str:
    """Return why kernels in a folder may be another user's; "" if they can't.

    Makes the folder, and takes it from others.

    Raises:
        OSError: it can't be made.
    """
    reason = make_private(folder)
    if reason:
        return reason
    was_open = bool(stat.S_IMODE(os.stat(folder).st_mode) & 0o077)
    reason = _foreign_content(folder, was_open=was_open)
    if not reason and was_open:
        os.chmod(folder, 0o700)
    return reason


def _foreign_content(folder: Path, *, was_open: bool) -> str:
    """Return what in a folder another user made, or could have changed."""
    with os.scandir(folder) as scan:
        entries = list(scan)
    for entry in entries:
        try:
            info = entry.stat(follow_symlinks=False)
        except FileNotFoundError:  # a compiler of another rank has removed it
            continue
        if info.st_uid != os.geteuid():
            return f"{entry.path} belongs to {user_name(info.st_uid)}"
        if stat.S_ISLNK(info.st_mode):
            return f"{entry.path} is a link"
        if was_open and others_may_write(Path(entry.path), info):
            return f"other users may write to {entry.path}"
        if stat.S_ISDIR(info.st_mode):
            reason = _foreign_content(Path(entry.path), was_open=was_open)
            if reason:
                return reason
    return ""
