"""Files and folders that other users of this machine can't read, replace or plant.

Other users may write to the folder for temporary files and to a working folder that
many share: they can take a name first, or put a link there. So a file is created under
a name that can't be guessed, never through a link, in a folder that belongs to this
user, and is renamed then.

`rank_main` loads this file before the package exists: standard library only.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path

_MOST_LINKS = 40  # in a path, as in Linux
_LARGEST_FILE = 2**30  # bytes of a file that is read whole
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_CREATE = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def problem(folder: Path) -> str:
    """Return how another user could change what is in a folder; "" if none can.

    The folder must belong to this user, no other may write to it, and none may put
    another one in its place: neither in the folders above it nor by a link on the way.

    Raises:
        OSError: the folder can't be examined.
    """
    root = os.stat("/").st_uid  # in a user namespace it may have another number than 0
    trusted = {0, root, os.geteuid()}
    current, rest, links = Path("/"), [*reversed(folder.absolute().parts[1:])], 0
    while rest:
        name = rest.pop()
        path = current.parent if name == ".." else current / name
        info = os.lstat(path)
        if info.st_uid not in trusted:
            return f"{path} belongs to {user_name(info.st_uid)}"
        if stat.S_ISLNK(info.st_mode):
            links += 1
            if links > _MOST_LINKS:
                return f"{path} is one of too many links"
            target = Path(os.readlink(path))
            current = Path("/") if target.is_absolute() else current
            rest += reversed(target.parts[target.is_absolute() :])
            continue
        if not stat.S_ISDIR(info.st_mode):
            return f"{path} is no folder"
        is_open = others_may_write(path, info)
        if is_open and not (rest and info.st_mode & stat.S_ISVTX):
            return f"other users may write to {path}"
        current = path
    if os.lstat(current).st_uid != os.geteuid():
        return f"{current} belongs to {user_name(os.lstat(current).st_uid)}"
    return ""


def others_may_write(file: Path | int, info: os.stat_result) -> bool:
    """Return whether users other than the owner may write to a file or folder.

    Args:
        file: its path or descriptor.
        info: what `os.stat` returns of it.
    """
    if info.st_mode & stat.S_IWOTH:
        return True
    if not info.st_mode & stat.S_IWGRP:
        return False
    return not _is_private_group(info) or _has_access_list(file)


def _has_access_list(file: Path | int) -> bool:
    """Return whether a list names users or groups; the bits of the group bound them."""
    try:
        return bool(os.getxattr(file, "system.posix_acl_access"))
    except (AttributeError, OSError):  # macOS has other lists; there is none
        return False


def _is_private_group(info: os.stat_result) -> bool:
    """Return whether the group is the owner's alone, as many systems set it up."""
    try:
        group, owner = grp.getgrgid(info.st_gid), pwd.getpwuid(info.st_uid)
    except KeyError:
        return False
    is_primary = owner.pw_gid == info.st_gid and group.gr_name == owner.pw_name
    return is_primary and set(group.gr_mem) <= {owner.pw_name}


def user_name(number: int) -> str:
    """Return a user's name, or the number of one without a name."""
    try:
        return f"user {pwd.getpwuid(number).pw_name}"
    except KeyError:
        return f"user {number}"


def make_folder(path: Path) -> None:
    """Make a folder, and those above it that are missing, with mode 700.

    Raises:
        OSError: it can't be made, or there is something else of that name.
    """
    for folder in (*reversed(path.parents), path):
        with contextlib.suppress(FileExistsError):
            if not os.path.lexists(folder):
                os.mkdir(folder, 0o700)
    if not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))


def make_private(path: Path) -> str:
    """Make a folder where it is missing, and return what is wrong with it; "" if none.

    Raises:
        OSError: it can't be made or examined.
    """
    make_folder(path)
    return problem(path)


def user_folder() -> Path:
    """Return a folder of this user alone, which is made where it is missing.

    In the folder for temporary files, or under the user's home.

    Raises:
        PermissionError: there is none, since other users may write to each.
    """
    import tempfile  # slow, and hardly ever needed

    name, reasons = f"mlxdist-{os.geteuid()}", []
    parents = ["/tmp"]  # noqa: S108
    with contextlib.suppress(FileNotFoundError):
        parents.insert(0, tempfile.gettempdir())
    home = Path(os.path.expanduser("~"), ".cache", "mlxdist")
    for folder in (*(Path(parent, name) for parent in dict.fromkeys(parents)), home):
        try:
            reason = make_private(folder)
        except OSError as error:
            reason = f"{folder}: {error.strerror}"
        if not reason:
            return folder
        reasons.append(reason)
    raise PermissionError(
        f"no folder belongs to this user alone ({'; '.join(reasons)}); set TMPDIR to "
        "one to which no other user can write"
    )


@contextlib.contextmanager
def opened_folder(path: Path) -> Iterator[int]:
    """Open a folder of this user's, made with mode 700 if it is missing.

    Files are to be created relative to its descriptor: whatever others do to the path
    meanwhile, they stay in this folder.

    Raises:
        PermissionError: it is another user's, or others may write to it.
        OSError: it can't be made or opened; it is a link.
    """
    make_folder(path)
    descriptor = os.open(path, os.O_DIRECTORY | _READ)
    try:
        info = os.fstat(descriptor)
        if info.st_uid != os.geteuid():
            reason = f"belongs to {user_name(info.st_uid)}"
            raise PermissionError(errno.EACCES, reason, str(path))
        if others_may_write(descriptor, info):
            reason = "other users may write to it"
            raise PermissionError(errno.EACCES, reason, str(path))
        yield descriptor
    finally:
        os.close(descriptor)


def write_private(path: Path, text: str) -> None:
    """Write a text file, whole or not at all, in a folder of this user's.

    Raises:
        OSError: it can't be written, or the folder is not this user's alone.
    """
    with opened_folder(path.parent) as folder:
        _replace(path.name, text, folder)


def write_atomically(path: Path, content: str | bytes, *, mode: int = 0o600) -> None:
    """Write a file that is either complete or absent.

    Makes its folder. It may be one that other users can write to: a link there is
    replaced, and not followed. Not synced to the disk: the file survives a crash of
    the process, not of the host.

    Args:
        content: text is written as UTF-8.
        mode: of the file, less the user's umask.

    Raises:
        OSError: it can't be written.
    """
    make_folder(path.parent)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _replace(path.name, content, folder, mode)
    except OSError as error:  # which names the temporary file, or none
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(folder)


def _replace(name: str, content: str | bytes, folder: int, mode: int = 0o600) -> None:
    if isinstance(content, str):
        content = content.encode(errors="replace")
    temporary = f".{name}.{os.urandom(8).hex()}"
    flags = os.O_WRONLY | _CREATE
    descriptor = os.open(temporary, flags, mode, dir_fd=folder)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        os.replace(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=folder)
        raise


def read_text(path: Path, most: int = _LARGEST_FILE) -> str:
    """Read a text file; a link, a pipe and a device are refused.

    Raises:
        OSError: it can't be opened, or is no file.
        ValueError: it is larger than `most` bytes.
    """
    descriptor = os.open(path, _READ)
    with os.fdopen(descriptor, "rb") as file:
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode):
            raise OSError(errno.EINVAL, "is no file", str(path))
        if info.st_size > most:
            raise ValueError(f"{path} has more than {most} bytes")
        return file.read(most).decode(errors="replace")


def open_log(path: Path, *, append: bool, mode: int = 0o600) -> int:
    """Open a file of this user's for writing, and return its descriptor.

    Whatever else has the name, such as a link or a file of another user, is replaced.

    Args:
        mode: of a new file, less the user's umask.

    Raises:
        OSError: it can't be created.
    """
    flags = os.O_RDWR | os.O_APPEND
    if append:
        with contextlib.suppress(OSError):
            descriptor = os.open(path, flags | _READ & ~os.O_RDONLY)
            info = os.fstat(descriptor)
            is_file = stat.S_ISREG(info.st_mode) and info.st_nlink == 1
            if is_file and info.st_uid == os.geteuid():
                return descriptor
            os.close(descriptor)
    path.unlink(missing_ok=True)
    return os.open(path, flags | _CREATE, mode)
