"""A lock on a folder, so that one job at a time saves into it.

The lock is the system's own, on a file in the folder. It ends with the process, however
that ends, and children that the process forked don't hold it. Between hosts it holds as
far as the file system's locks do; where a file system has none, nothing is locked.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
from contextlib import suppress
from pathlib import Path

from .durable import require_regular, write_all

NAME = ".lock"
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_HELD = (errno.EACCES, errno.EAGAIN)
_HOLDER = re.compile(r"(\d{1,10}) ([A-Za-z0-9._-]{1,200})\n")

_paths: set[Path] = set()  # that this process has locked: the system would let it again


class InUseError(OSError):
    """Another job has the lock."""


class FolderLock:
    """The lock on a folder, held until `close`.

    Raises:
        InUseError: if another process holds it, with its number and host.
        OSError: if the file can't be made.
    """

    def __init__(self, folder: Path, name: str = NAME):
        self._path = folder / name
        if self._path in _paths:
            raise InUseError(f"{folder} is in use by another save of this process")
        while (file := _locked(self._path)) is None:
            pass
        self._file = file
        _paths.add(self._path)
        try:
            os.ftruncate(file, 0)
            holder = f"{os.getpid()} {socket.gethostname()}\n"
            write_all(file, memoryview(holder.encode()), 0)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Release the lock, and remove its file. May be called twice."""
        if self._file >= 0:
            with suppress(OSError):
                self._path.unlink()
            with suppress(OSError):
                os.close(self._file)
            self._file = -1
            _paths.discard(self._path)


def _locked(path: Path) -> int | None:
    """Return the lock's file; None where its last holder removed it meanwhile."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    file = os.open(path, flags, 0o666)
    try:
        require_regular(file, path)
        _lock(file, path)
        if _is_same(file, path):
            return file
    except BaseException:
        os.close(file)
        raise
    os.close(file)
    return None


def _lock(file: int, path: Path) -> None:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD:
            raise InUseError(
                f"{path.parent} is in use: {_holder(file)} saves into it. Wait for it, "
                "end it, or name another folder"
            ) from None
        if error.errno not in _UNSUPPORTED:
            raise


def _holder(file: int) -> str:
    match = _HOLDER.fullmatch(os.pread(file, 256, 0).decode("ascii", "replace"))
    return "another job" if match is None else f"process {match[1]} on {match[2]}"


def _is_same(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.lstat(path))
    except FileNotFoundError:
        return False
