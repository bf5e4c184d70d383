"""Durable files: written to the disk whole or not at all, and opened without trust."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import stat
from pathlib import Path

from ..layout.wording import shortened


class DamagedError(ValueError):
    """A file is not what was written. Its text is cut: it may quote the file."""

    def __init__(self, text: str):
        super().__init__(shortened(text))


def create(path: Path) -> int:
    """Create a new file for `write_all`, past the page cache where the system can.

    Returns:
        The file descriptor.

    Raises:
        FileExistsError: if there is something of that name, which is left as it is.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    file = os.open(path, flags, 0o666)
    # Not in `os.open`: where that refuses direct writes, it has created the file.
    with contextlib.suppress(OSError):  # tmpfs and some others have no direct writes
        if hasattr(os, "O_DIRECT"):
            status = fcntl.fcntl(file, fcntl.F_GETFL)
            fcntl.fcntl(file, fcntl.F_SETFL, status | os.O_DIRECT)
        elif hasattr(fcntl, "F_NOCACHE"):  # macOS
            fcntl.fcntl(file, fcntl.F_NOCACHE, 1)
    return file


def write_all(file: int, data: memoryview, offset: int) -> None:
    """Write all bytes at an offset; direct writes need both aligned to pages."""
    while data.nbytes:
        try:
            written = os.pwrite(file, data, offset)
        except OSError:
            if not _is_direct(file):
                raise
            # Some file systems refuse direct writes of this size or at this offset.
            flags = fcntl.fcntl(file, fcntl.F_GETFL)
            fcntl.fcntl(file, fcntl.F_SETFL, flags & ~os.O_DIRECT)
            continue
        data, offset = data[written:], offset + written


def _is_direct(file: int) -> bool:
    direct = getattr(os, "O_DIRECT", 0)
    return bool(direct and fcntl.fcntl(file, fcntl.F_GETFL) & direct)


def flush(file: int) -> None:
    """Flush a file's bytes, or a folder's names, to the disk itself."""
    full = getattr(fcntl, "F_FULLFSYNC", None)  # macOS, whose fsync stops at the drive
    if full is None:
        os.fsync(file)
        return
    try:
        fcntl.fcntl(file, full)
    except OSError:  # network drives don't have it
        os.fsync(file)


def flush_folder(path: Path) -> None:
    """Flush the names in a folder, after a file in it was created or renamed."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        flush(folder)
    finally:
        os.close(folder)


def make_folders(path: Path) -> None:
    """Make a folder and those above it, and flush their names to the disk."""
    missing = [path, *path.parents]
    missing = [folder for folder in missing if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        flush_folder(folder.parent)


def write_atomically(path: Path, data: bytes) -> None:
    """Write a small file: after a crash it has the old content or the new, in full.

    A job that is killed may leave a temporary file behind: see `is_temporary`.
    """
    temporary = path.with_name(f".{path.name}.saving-{secrets.token_hex(8)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    file = os.open(temporary, flags, 0o666)
    try:
        write_all(file, memoryview(data), 0)
        flush(file)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        os.close(file)
    flush_folder(path.parent)


def is_temporary(name: str, path: Path) -> bool:
    """Return whether a file is what `write_atomically` renames to a path."""
    pattern = re.escape(f".{path.name}.saving-") + "[0-9a-f]{16}"
    return re.fullmatch(pattern, name) is not None


def open_file(path: Path) -> int:
    """Open a regular file for reading, and return its file descriptor.

    Raises:
        DamagedError: if it is missing, a symbolic link, a folder or a device.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        kind = "is a link" if path.is_symlink() else error.strerror or "can't be opened"
        raise DamagedError(f"{path}: {kind}") from None
    try:
        require_regular(file, path)
    except BaseException:
        os.close(file)
        raise
    return file


def require_regular(file: int, path: Path) -> None:
    """Raise DamagedError if an open file is a folder, pipe, socket or device."""
    if not stat.S_ISREG(os.fstat(file).st_mode):
        raise DamagedError(f"{path} is not a file")
