"""The folder of checkpoints: their names, which of them are whole, which must go.

A checkpoint is a folder of its own. It is written under a name that begins with a dot
and renamed in one step, so that a name without a dot is a checkpoint that was whole.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from pathlib import Path
from typing import NamedTuple

from . import manifest as manifests
from . import manifest_check as parsing
from .block_file import read_small
from .durable import DamagedError, flush_folder, open_file, write_beside
from .manifest import Manifest

LATEST = "latest"
_NAME = re.compile(r"save-(\d{5,12})-step-(\d{8,16})")
_UNFINISHED = re.compile(r"\.save-\d{5,12}-step-\d{8,16}\.(saving|removing)-[0-9a-f]+")


class Save(NamedTuple):
    """A checkpoint's name. `serial` counts the saves into a folder.

    The last one is that of the highest serial: a run that went back to step 500 of
    1000 goes on from its own step 600.
    """

    serial: int
    step: int

    @property
    def name(self) -> str:
        return f"save-{self.serial:05}-step-{self.step:08}"

    def unfinished(self, token: str, doing: str = "saving") -> str:
        return f".{self.name}.{doing}-{token}"


def listed(folder: Path) -> list[Save]:
    """The checkpoints of a folder, the last one first; none where there is no folder.

    Raises:
        OSError: where it can't be read.
    """
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    found = [
        Save(*map(int, name.groups())) for name in map(_NAME.fullmatch, names) if name
    ]
    return sorted((save for save in found if save.name in names), reverse=True)


def read_manifest(folder: Path, save: Save) -> bytes:
    """The bytes of a checkpoint's manifest. Raises DamagedError."""
    place = folder / save.name
    if place.is_symlink() or not place.is_dir():
        raise DamagedError(f"{place} is not a folder")
    return read_small(place / manifests.NAME, parsing.LARGEST)


def parse(data: bytes, folder: Path, save: Save) -> Manifest:
    """A manifest that was read. Raises DamagedError, naming the file."""
    path = folder / save.name / manifests.NAME
    try:
        manifest = parsing.from_bytes(data)
    except ValueError as error:
        raise DamagedError(f"{path}: {error}") from None
    if manifest.step != save.step:
        raise DamagedError(f"{path} is of step {manifest.step}, and not of its name's")
    return manifest


def file_problem(path: Path, nbytes: int) -> str | None:
    """Why a file is not there as it was written, by its size alone."""
    try:
        file = open_file(path)
    except DamagedError as error:
        return str(error)
    found = os.fstat(file).st_size
    os.close(file)
    return None if found == nbytes else f"{path} has {found} bytes, wanted {nbytes}"


def commit(folder: Path, save: Save, token: str, manifest: bytes) -> None:
    """Makes a written checkpoint the last one: its manifest, then its name."""
    place = folder / save.unfinished(token)
    write_beside(place / manifests.NAME, manifest)
    place.rename(folder / save.name)
    flush_folder(folder)


def point_to(folder: Path, save: Save) -> None:
    """Writes the name of the last checkpoint into the file `latest`."""
    write_beside(folder / LATEST, f"{save.name}\n".encode())


def prune(folder: Path, keep: int | None, token: str) -> None:
    """Removes all checkpoints but the last `keep`."""
    for save in listed(folder)[keep:] if keep is not None else ():
        remove(folder, save, token)


def remove(folder: Path, save: Save, token: str) -> None:
    """Removes a checkpoint; its name is gone before its files are."""
    doomed = folder / save.unfinished(token, "removing")
    with contextlib.suppress(FileNotFoundError):
        (folder / save.name).rename(doomed)
        flush_folder(folder)
        shutil.rmtree(doomed)


def sweep(folder: Path, but: str) -> None:
    """Removes what saves that were killed left behind."""
    for name in os.listdir(folder):
        if _UNFINISHED.fullmatch(name) and name != but:
            shutil.rmtree(folder / name, ignore_errors=True)


def problems(folder: Path, save: Save, manifest: Manifest) -> list[str | None]:
    """For each file of a checkpoint, why this rank can't use it."""
    place = folder / save.name
    return [file_problem(place / file.name, file.nbytes) for file in manifest.files]
