"""How a checkpoint is loaded: the last good one is chosen, verified, then read."""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx

from ..arrays.types import Array
from ..comm.collectives import Collectives
from ..comm.together import CheckpointError, together
from . import directory as saves
from . import mlx_files as plain
from . import user_data as extra
from .directory import Save
from .durable import DamagedError
from .manifest import Manifest
from .reader import Source
from .targets import Target, Targets


class Candidate(NamedTuple):
    """A checkpoint that is all there, by the sizes of its files.

    `seen` says for each rank which of the files it sees.
    """

    save: Save
    manifest: Manifest
    seen: list[list[bool]]


def found(folder: Path, comm: Collectives) -> list[Save]:
    """The checkpoints that any rank sees, the last one first."""
    own, problem = [], None
    try:
        own = [list(save) for save in saves.listed(folder)]
    except OSError as error:
        problem = str(error)
    failed = f"{folder} can't be read"
    answers = together(comm.all_gather_bytes, failed, problem, saves=own)
    every = {Save(*save) for answer in answers for save in answer["saves"]}
    return sorted(every, reverse=True)


def examine(folder: Path, save: Save, comm: Collectives) -> Candidate:
    """Reads a checkpoint's manifest and looks for its files.

    Raises:
        CheckpointError: on all ranks, where it is damaged or not all there.
    """
    data: bytes | None = None  # where there is none on this host
    problem = None
    try:
        if os.path.lexists(folder / save.name):
            data = saves.read_manifest(folder, save)
    except DamagedError as error:
        problem = str(error)
    digest = None if data is None else hashlib.sha256(data).hexdigest()
    failed = f"{save.name} is damaged"
    answers = together(comm.all_gather_bytes, failed, problem, digest=digest)
    digests = [answer["digest"] for answer in answers]
    if len({*digests} - {None}) > 1:
        raise CheckpointError(f"{failed}: its manifests differ between the hosts")
    if None in digests:  # hosts with disks of their own, and a new one among them
        first = next(rank for rank, one in enumerate(digests) if one is not None)
        sent = data if comm.rank == first and data is not None else b""
        data = comm.all_gather_bytes(sent)[first]
    manifest = None
    try:
        manifest = saves.parse(data or b"", folder, save)
    except DamagedError as error:
        problem = str(error)
    together(comm.all_gather_bytes, failed, problem)
    assert manifest is not None
    own = saves.problems(folder, save, manifest)
    answers = together(comm.all_gather_bytes, failed, None, problems=own)
    missing = [answer["problems"] for answer in answers]
    for one in zip(*missing, strict=True):
        if None not in one:
            raise CheckpointError(f"{failed}: {one[0]}")
    seen = [[problem is None for problem in row] for row in missing]
    return Candidate(save, manifest, seen)


def read(source: Source, targets: Targets, comm: Collectives) -> Any:
    """Reads what this rank needs, an array at a time, and puts it in its place.

    Returns:
        The user's `extra`.
    """
    manifest = source.manifest
    held: dict[str, Array] = {}
    targets = dict(targets)
    for array in manifest.arrays:
        if array.kind == "extra":
            put = _keep(held, array.path)
            targets[array.identity] = Target(0, array.size, array.shape, put)
    # First what may still turn out to be wrong; then nothing is left half done.
    ordered = sorted(manifest.arrays, key=lambda array: array.kind != "extra")
    user, problem = None, None
    count = sum(array.kind == "extra" for array in ordered)
    _read(source, targets, ordered[:count])
    try:
        user = extra.decode(manifest.extra, held)
    except ValueError as error:
        problem = str(error)
    failed = "the checkpoint's extra can't be read"
    together(comm.all_gather_bytes, failed, source.problem or problem)
    _read(source, targets, ordered[count:])
    failed = "the checkpoint could not be read to its end, and the model is half loaded"
    together(comm.all_gather_bytes, failed, source.unchanged())
    return user


def _keep(held: dict[str, Array], path: str) -> Any:
    def put(array: Array) -> None:
        held[path] = array

    return put


def _read(source: Source, targets: Targets, arrays: Sequence[Any]) -> None:
    for array in arrays:
        target = targets.get(array.identity)
        span = None if target is None else (target.start, target.stop)
        flat = source.fetch(array, span)
        if target is not None and flat is not None and source.problem is None:
            shaped = flat.reshape(target.shape)
            mx.eval(shaped)
            target.put(shaped)


def check_sampler(manifest: Manifest, sampler: Any) -> None:
    """Raises ValueError where a sampler can't go on where the saved one was."""
    if sampler is None:
        return
    if manifest.sampler is None:
        raise ValueError("it was saved without a sampler: leave out sampler=")
    try:
        copy.copy(sampler).load_state_dict(manifest.sampler)
    except TypeError as error:
        raise ValueError(str(error)) from None


class Opened(NamedTuple):
    """A checkpoint that may be read: whole, verified, and of this model."""

    place: Path
    source: Source
    targets: Targets
    skipped: tuple[str, ...]


def open_last(
    folder: Path,
    step: int | None,
    comm: Collectives,
    fit: Callable[[Manifest], Targets],
    optimizer: Any,
) -> Opened | None:
    """The last checkpoint that is good, of a step if one is named; None without any.

    Args:
        optimizer: what is to be loaded, or None; plain MLX files are read for it.
        fit: where the arrays go; raises ValueError where they don't fit.

    Raises:
        CheckpointError: on all ranks, where none is good, or it does not fit.
    """
    every = found(folder, comm)
    skipped: list[str] = []
    if not every and step is None:
        return _open_plain(folder, comm, fit, optimizer)
    for save in every:
        if step not in (None, save.step):
            continue
        try:
            candidate = examine(folder, save, comm)
        except CheckpointError as error:
            skipped.append(str(error))
            continue
        targets = fitted(fit, candidate.manifest, save.name, comm)
        place = folder / save.name
        source = Source(place, candidate.manifest, candidate.seen, comm)
        problem = source.verify()
        try:
            together(comm.all_gather_bytes, f"{save.name} is damaged", problem)
        except CheckpointError as error:
            source.close()
            skipped.append(str(error))
            continue
        return Opened(place, source, targets, tuple(skipped))
    others = ", ".join(str(save.step) for save in every if save.step != step)
    told = "\n  ".join(skipped) or f"there is none of step {step}"
    offer = ""
    if others and step is not None:
        offer = f"\nIt has others, of step {others}; step=None takes the last good one."
    raise CheckpointError(f"no good checkpoint in {folder}:\n  {told}{offer}")


def _open_plain(
    folder: Path, comm: Collectives, fit: Callable[[Manifest], Targets], optimizer: Any
) -> Opened | None:
    """Plain MLX files, where the folder holds such on any rank."""
    manifest, problem = None, None
    there = plain.is_plain(folder)
    try:
        manifest = plain.manifest_of(folder, optimizer) if there else None
    except (DamagedError, OSError) as error:
        problem = str(error)
    failed = f"the plain files in {folder} can't be loaded"
    answers = together(comm.all_gather_bytes, failed, problem, there=there)
    if not any(answer["there"] for answer in answers):
        return None
    problem = None if there else f"there is no {folder / plain.MODEL} on this host"
    together(comm.all_gather_bytes, failed, problem)
    assert manifest is not None
    seen = [[True] * len(manifest.files)] * comm.size
    targets = fitted(fit, manifest, str(folder), comm)
    return Opened(folder, Source(folder, manifest, seen, comm), targets, ())


def fitted(
    fit: Callable[[Manifest], Targets], manifest: Manifest, name: str, comm: Collectives
) -> Targets:
    """The targets on this rank. Raises CheckpointError on all of them."""
    targets: Targets = {}
    problem = None
    try:
        targets = fit(manifest)
    except ValueError as error:
        problem = str(error)
    failed = f"{name} can't be loaded, and nothing was changed"
    together(comm.all_gather_bytes, failed, problem)
    return targets
