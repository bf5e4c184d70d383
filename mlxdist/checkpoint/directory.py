"""The folder of checkpoints: names, commit by rename, and removal of old ones.

Each checkpoint is a folder in it. It is written under a name that begins with a dot,
then renamed in one step, so a name without a dot is a complete checkpoint.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from . import bounded_json, manifest_check
from .block_file import read_small
from .durable import (
    DamagedError,
    flush_folder,
    is_temporary,
    open_file,
    write_atomically,
)
from .manifest import NAME, Manifest

LATEST = "latest"
NO_FOLDER = Path()
_SAVE_NAME = re.compile(r"save-(\d{5,12})-step-(\d{8,16})", re.ASCII)
_END_OF_SERIALS = 10**12
_TRUSTED_SERIALS = 10**8  # more saves than any run makes
_TEMPORARY = re.compile(r"\.save-\d{5,12}-step-\d{8,16}\.(saving|removing)-[0-9a-f]+")


class Save(NamedTuple):
    """A checkpoint's name. `serial` counts the saves into a folder.

    The newest checkpoint is that of the highest serial: a run that went back from
    step 1000 to 500 resumes from its own step 600.
    """

    serial: int
    step: int

    @property
    def name(self) -> str:
        return f"save-{self.serial:05}-step-{self.step:08}"

    def temporary(self, token: str, action: str = "saving") -> str:
        """Return the folder's name before it is complete, or while it is removed."""
        return f".{self.name}.{action}-{token}"


def resolve(folder: object) -> Path:
    """Return a user's argument as an absolute path, or NO_FOLDER if it is no path."""
    if not isinstance(folder, str | os.PathLike):
        return NO_FOLDER
    return Path(os.path.abspath(os.path.expanduser(folder)))


def list_saves(folder: Path) -> list[Save]:
    """Return the checkpoints of a folder, newest first; none if it doesn't exist.

    Raises:
        OSError: if it can't be read.
    """
    try:
        names = set(os.listdir(folder))
    except FileNotFoundError:
        return []
    matches = filter(None, map(_SAVE_NAME.fullmatch, names))
    saves = [Save(*map(int, match.groups())) for match in matches]
    return sorted((save for save in saves if save.name in names), reverse=True)


def next_serial(folder: Path) -> int:
    """Return the serial of the next save, which is above those of all checkpoints.

    A folder that no save can have made does not count: after the highest serial there
    would be none for later saves.

    Raises:
        OSError: if the folder can't be read.
        ValueError: if there is no higher serial.
    """
    for save in list_saves(folder):
        if save.serial < _TRUSTED_SERIALS or is_checkpoint(folder, save):
            if save.serial + 1 == _END_OF_SERIALS:
                raise ValueError(
                    f"{folder / save.name} has the last number of all: move it away"
                )
            return save.serial + 1
    return 1


def is_checkpoint(folder: Path, save: Save) -> bool:
    """Return whether a folder has a valid manifest, of the step in its name."""
    return _valid_manifest(folder, save) is not None


def _valid_manifest(folder: Path, save: Save) -> Manifest | None:
    try:
        return parse_manifest(read_manifest(folder, save), folder, save)
    except (DamagedError, OSError):
        return None


def read_manifest(folder: Path, save: Save) -> bytes:
    """Return the bytes of a checkpoint's manifest. Raises DamagedError."""
    path = folder / save.name
    if path.is_symlink() or not path.is_dir():
        raise DamagedError(f"{path} is not a folder")
    return read_small(path / NAME, bounded_json.MAX_BYTES)


def parse_manifest(data: bytes, folder: Path, save: Save) -> Manifest:
    """Parse a manifest's bytes. Raises DamagedError, with the file's path."""
    path = folder / save.name / NAME
    try:
        manifest = manifest_check.from_bytes(data)
    except ValueError as error:
        raise DamagedError(f"{path}: {error}") from None
    if manifest.step != save.step:
        raise DamagedError(
            f"{path} is of step {manifest.step}, its folder's name of {save.step}"
        )
    return manifest


def file_problems(folder: Path, save: Save, manifest: Manifest) -> list[str | None]:
    """Return for each file why this rank can't use it, by its size alone."""
    path = folder / save.name
    return [file_problem(path / file.name, file.nbytes) for file in manifest.files]


def file_problem(path: Path, nbytes: int) -> str | None:
    """Return why a file can't be one of that size, or None."""
    try:
        file = open_file(path)
    except DamagedError as error:
        return str(error)
    try:
        size = os.fstat(file).st_size
    finally:
        os.close(file)
    return None if size == nbytes else f"{path} has {size} bytes, wanted {nbytes}"


def commit(folder: Path, save: Save, token: str, manifest: bytes) -> None:
    """Make a written checkpoint the newest: write its manifest, then rename it.

    The caller flushes the folder.
    """
    path = folder / save.temporary(token)
    write_atomically(path / NAME, manifest)
    path.rename(folder / save.name)


def point_to(folder: Path, save: Save) -> None:
    """Write the newest checkpoint's name into the file `latest`."""
    write_atomically(folder / LATEST, f"{save.name}\n".encode())


class Run(NamedTuple):
    """The checkpoints of one run: those from serial `oldest` to the newest."""

    oldest: int
    newest: Save

    def older(self, folder: Path) -> list[Save]:
        """Return those before the newest, in falling order."""
        serials = range(self.oldest, self.newest.serial)
        return [save for save in list_saves(folder) if save.serial in serials]


def good_saves(folder: Path, run: Run, most: int) -> list[Save]:
    """Return up to `most` checkpoints of a run, before its newest, that are good."""
    good: list[Save] = []
    for save in run.older(folder):
        if len(good) == most:
            break
        manifest = _valid_manifest(folder, save)
        if manifest is not None and _has_files(folder, save, manifest):
            good.append(save)
    return good


def _has_files(folder: Path, save: Save, manifest: Manifest) -> bool:
    """Return whether a checkpoint has all its files here, or some on other disks."""
    are_elsewhere = len(set(manifest.disks)) > 1
    return are_elsewhere or not any(file_problems(folder, save, manifest))


def prune(
    folder: Path, run: Run, keep: int, good: Collection[Save], token: str
) -> None:
    """Remove all but the newest `keep` checkpoints of a run.

    Folders that are no checkpoints are not removed, and don't count.

    Args:
        good: the older ones that count: those that are good on all disks.
    """
    kept = 1
    for save in run.older(folder):
        if kept < keep:
            kept += save in good
        elif os.path.lexists(folder / save.name / NAME):
            remove(folder, save, token)


def remove(folder: Path, save: Save, token: str) -> None:
    """Remove a checkpoint: rename it first, so that no half of one has its name."""
    temporary = folder / save.temporary(token, "removing")
    with contextlib.suppress(FileNotFoundError):
        (folder / save.name).rename(temporary)
        try:
            flush_folder(folder)
        finally:
            if temporary.is_symlink():  # its target is the user's
                temporary.unlink()
            else:
                shutil.rmtree(temporary)


def sweep(folder: Path, current: str) -> None:
    """Remove what killed saves left behind, but for the folder `current`."""
    for name in os.listdir(folder):
        path = folder / name
        if _TEMPORARY.fullmatch(name) and name != current:
            shutil.rmtree(path, ignore_errors=True)
        elif is_temporary(name, folder / LATEST):
            with contextlib.suppress(OSError):
                path.unlink()
