"""Choice of the checkpoint to load: the newest that is complete and undamaged."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from ..comm.collectives import Collectives
from . import directory, mlx_files
from .collective import CheckpointError, problem_of, require_success
from .directory import Save
from .durable import DamagedError
from .reader import ArrayReader, Contents
from .targets import LoadTarget, Targets, find_targets, with_quoted_keys


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


def open_newest(
    folder: Path, step: int | None, target: LoadTarget, comm: Collectives
) -> Opened | None:
    """Open the newest good checkpoint, of a step if one is named; None without any.

    Raises:
        CheckpointError: on all ranks, if none is good or it does not fit.
    """
    saves = _list_saves(folder, comm)
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
    reasons = "\n  ".join(skipped) or f"there is none of step {step}"
    others = ", ".join(str(save.step) for save in saves if save.step != step)
    offer = ""
    if others and step is not None:
        offer = (
            f"\nIt has others, of step {others}; step=None loads the newest good one."
        )
    return f"no good checkpoint in {folder}:\n  {reasons}{offer}"


def _list_saves(folder: Path, comm: Collectives) -> list[Save]:
    """Return the checkpoints that any rank sees, newest first."""
    saves, problem = [], None
    try:
        saves = directory.list_saves(folder)
    except (OSError, ValueError) as error:
        problem = str(error)
    failure = f"{folder} can't be read"
    listing = _Listing(saves)
    listings = require_success(comm.all_gather_bytes, failure, problem, listing)
    return sorted({save for each in listings for save in each.saves}, reverse=True)


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
    data, manifest, problem = b"", None, None
    report = _FilesReport(None, [])
    try:
        if os.path.lexists(folder / save.name):
            data = directory.read_manifest(folder, save)
            manifest = directory.parse_manifest(data, folder, save)
            problems = directory.file_problems(folder, save, manifest)
            report = _FilesReport(hashlib.sha256(data).hexdigest(), problems)
    except (DamagedError, OSError) as error:
        problem = str(error)
    reports = require_success(comm.all_gather_bytes, failure, problem, report)
    known = [rank for rank, each in enumerate(reports) if each.sha256 is not None]
    if not known:
        raise CheckpointError(f"{failure}: it was removed")
    if len({reports[rank].sha256 for rank in known}) != 1:
        raise CheckpointError(f"{failure}: its manifests differ between the hosts")
    if len(known) < comm.size:  # hosts with their own disks, and a new one among them
        data = comm.all_gather_bytes(data if comm.rank == known[0] else b"")[known[0]]
        manifest = manifest or directory.parse_manifest(data, folder, save)
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


def _verified(
    contents: Contents, seen: list[list[bool]], name: str, comm: Collectives
) -> ArrayReader:
    """Verify all checksums. Raises CheckpointError on all ranks."""
    reader = ArrayReader(contents, seen, comm)
    try:
        failure = f"{name} is damaged"
        require_success(comm.all_gather_bytes, failure, reader.verify(), None)
    except BaseException:
        reader.close()
        raise
    return reader


def _open_mlx_files(
    folder: Path, target: LoadTarget, comm: Collectives
) -> Opened | None:
    """Open plain MLX files, if any rank sees some."""
    contents, problem = None, None
    exists = mlx_files.exist(folder)
    try:
        contents = mlx_files.read_contents(folder, target.optimizer) if exists else None
    except (DamagedError, OSError) as error:
        problem = str(error)
    failure = f"the plain files in {folder} can't be loaded"
    presence = _Presence(exists)
    reports = require_success(comm.all_gather_bytes, failure, problem, presence)
    if not any(report.exists for report in reports):
        return None
    missing = None if exists else f"there is no {folder / mlx_files.MODEL} on this host"
    require_success(comm.all_gather_bytes, failure, missing, None)
    assert contents is not None
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
    targets: Targets = {}
    problem = None
    try:
        contents = with_quoted_keys(contents, target.model)
        targets = find_targets(contents, target)
    except Exception as error:  # of any kind, since the other ranks wait for it
        problem = problem_of(error)
    failure = f"{name} can't be loaded, and nothing was changed"
    require_success(comm.all_gather_bytes, failure, problem, None)
    return contents, targets
