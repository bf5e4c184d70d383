"""Choice of the checkpoint to load: the newest that is complete and undamaged."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec

from ..comm.agreement import difference
from ..comm.collectives import Collectives
from ..layout.wording import shortened
from . import directory, mlx_files
from .collective import CheckpointError, attempt, on_all_ranks, require_success
from .directory import Save
from .manifest import Manifest
from .reader import ArrayReader, Contents, FileReaders
from .target import Targets
from .targets import LoadTarget, find_targets, with_quoted_keys

_MAX_REASONS = 10  # that are listed in an error


class Opened(NamedTuple):
    """A checkpoint that may be loaded: complete, verified, and of this model."""

    contents: Contents
    reader: ArrayReader
    targets: Targets
    skipped: tuple[str, ...]


class _Listing(msgspec.Struct):
    """The checkpoints that a rank sees."""

    saves: list[Save]


class _FilesReport(msgspec.Struct):
    """What a rank sees of a checkpoint.

    Attributes:
        sha256: of the manifest; None if the host has no such checkpoint.
        problems: for each file, why the rank can't use it.
    """

    sha256: str | None
    problems: list[str | None]


class _Presence(msgspec.Struct):
    """Whether a rank sees plain MLX files."""

    exists: bool


class _Checksums(msgspec.Struct):
    """A rank's CRC-32 of each plain file."""

    sums: list[int]

    def text(self, contents: Contents) -> str:
        pairs = zip(contents.files, self.sums, strict=True)
        return ", ".join(f"{file.name} has the CRC-32 {crc:08x}" for file, crc in pairs)


def _sums(contents: Contents) -> list[int]:
    with FileReaders(contents) as readers:
        return [readers[index].checksum() for index in range(len(contents.files))]


def open_newest(
    folder: Path,
    saves: Sequence[Save],
    step: int | None,
    target: LoadTarget,
    comm: Collectives,
) -> Opened | None:
    """Open the newest good checkpoint, of a step if one is named; None without any.

    Args:
        saves: from `list_saves`.

    Raises:
        CheckpointError: on all ranks, if none is good or it does not fit.
    """
    if not saves and step is None:
        return _open_mlx_files(folder, target, comm)
    skipped: list[str] = []
    for save in saves:
        if step not in (None, save.step):
            continue
        try:
            contents, seen = _examine(folder, save, comm)
        except CheckpointError as error:
            skipped.append(str(error))
            continue
        contents, targets = _fit(contents, target, save.name, comm)
        try:
            reader = _verified(contents, seen, save.name, comm)
        except CheckpointError as error:
            skipped.append(str(error))
            continue
        return Opened(contents, reader, targets, tuple(skipped))
    raise CheckpointError(_none_is_good(folder, step, saves, skipped))


def _none_is_good(
    folder: Path, step: int | None, saves: Sequence[Save], skipped: Sequence[str]
) -> str:
    reasons = "\n  ".join(skipped[:_MAX_REASONS]) or f"there is none of step {step}"
    if len(skipped) > _MAX_REASONS:
        reasons += f"\n  and {len(skipped) - _MAX_REASONS} more"
    steps = (str(save.step) for save in saves if save.step != step)
    others = shortened(", ".join(steps))
    offer = ""
    if others and step is not None:
        offer = (
            f"\nIt has others, of step {others}; step=None loads the newest good one."
        )
    return f"no good checkpoint in {folder}:\n  {reasons}{offer}"


def list_saves(folder: Path, comm: Collectives) -> list[Save]:
    """Return the checkpoints that any rank sees, newest first.

    Raises:
        CheckpointError: on all ranks, if one can't read the folder.
    """
    listing, problem = attempt(lambda: _Listing(directory.list_saves(folder)))
    failure = f"{folder} can't be read"
    listings = require_success(comm.all_gather_bytes, failure, problem, listing)
    saves = {save for each in listings if each is not None for save in each.saves}
    return sorted(saves, reverse=True)


def _examine(
    folder: Path, save: Save, comm: Collectives
) -> tuple[Contents, list[list[bool]]]:
    """Read a checkpoint's manifest, and look at the sizes of its files.

    Returns:
        The contents; and for each rank which of the files it sees.

    Raises:
        CheckpointError: on all ranks, if it is damaged or incomplete.
    """
    failure = f"{save.name} is damaged"
    all_gather = comm.all_gather_bytes
    data, manifest = on_all_ranks(all_gather, failure, partial(_read, folder, save))
    look = partial(_look, folder, save, data, manifest)
    report = on_all_ranks(all_gather, failure, look)
    reports = require_success(all_gather, failure, None, report)
    known = [rank for rank, each in enumerate(reports) if each.sha256 is not None]
    if not known:
        raise CheckpointError(f"{failure}: it was removed")
    if len({reports[rank].sha256 for rank in known}) != 1:
        raise CheckpointError(f"{failure}: its manifests differ between the hosts")
    if len(known) < comm.size:  # hosts with their own disks, and a new one among them
        data = all_gather(data if comm.rank == known[0] else b"")[known[0]]
        parse = partial(directory.parse_manifest, data, folder, save)
        manifest = on_all_ranks(all_gather, failure, parse)
    assert manifest is not None
    files = range(len(manifest.files))
    for file in files:
        problems = [reports[rank].problems[file] for rank in known]
        if None not in problems:
            raise CheckpointError(f"{failure}: {problems[0]}")
    seen = [
        [bool(r.problems) and r.problems[f] is None for f in files] for r in reports
    ]
    contents = Contents(folder / save.name, manifest.files, manifest.arrays, manifest)
    return contents, seen


def _read(folder: Path, save: Save) -> tuple[bytes, Manifest | None]:
    """Return a manifest's bytes, and the manifest; None if this host has none."""
    if not os.path.lexists(folder / save.name):
        return b"", None
    data = directory.read_manifest(folder, save)
    return data, directory.parse_manifest(data, folder, save)


def _look(
    folder: Path, save: Save, data: bytes, manifest: Manifest | None
) -> _FilesReport:
    if manifest is None:
        return _FilesReport(None, [])
    problems = directory.file_problems(folder, save, manifest)
    return _FilesReport(hashlib.sha256(data).hexdigest(), problems)


def _verified(
    contents: Contents, seen: list[list[bool]], name: str, comm: Collectives
) -> ArrayReader:
    """Verify all checksums. Raises CheckpointError on all ranks."""
    reader = ArrayReader(contents, seen, comm)
    try:
        failure = f"{name} is damaged"
        on_all_ranks(comm.all_gather_bytes, failure, reader.verify)
    except BaseException:
        reader.close()
        raise
    return reader


def _open_mlx_files(
    folder: Path, target: LoadTarget, comm: Collectives
) -> Opened | None:
    """Open plain MLX files, if any rank sees some.

    Raises:
        CheckpointError: on all ranks, if they can't be loaded, or if hosts have files
            that differ.
    """
    all_gather = comm.all_gather_bytes
    failure = f"the plain files in {folder} can't be loaded"
    exist = partial(mlx_files.exist, folder)
    presence = _Presence(on_all_ranks(all_gather, failure, exist))
    reports = require_success(all_gather, failure, None, presence)
    if not any(report.exists for report in reports):
        return None
    read = partial(mlx_files.read_contents, folder, target.optimizer)
    contents = on_all_ranks(all_gather, failure, read)
    report = _Checksums(on_all_ranks(all_gather, failure, partial(_sums, contents)))
    sums = require_success(all_gather, failure, None, report)
    if any(each.sums != report.sums for each in sums):
        listed = difference([each.text(contents) for each in sums])
        raise CheckpointError(
            f"{failure}: they are not the same on all ranks:\n{listed}"
        )
    seen = [[True] * len(contents.files)] * comm.size
    contents, targets = _fit(contents, target, str(folder), comm)
    return Opened(contents, ArrayReader(contents, seen, comm), targets, ())


def _fit(
    contents: Contents, target: LoadTarget, name: str, comm: Collectives
) -> tuple[Contents, Targets]:
    """Return the contents by the model's own paths, and this rank's targets.

    Raises:
        CheckpointError: on all ranks, if the checkpoint does not fit.
    """

    def fit() -> tuple[Contents, Targets]:
        renamed = with_quoted_keys(contents, target.model)
        return renamed, find_targets(renamed, target)

    failure = f"{name} can't be loaded, and nothing was changed"
    return on_all_ranks(comm.all_gather_bytes, failure, fit)
