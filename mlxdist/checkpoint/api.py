"""`save_checkpoint` and `load_checkpoint`."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..arrays.types import Tree
from ..optim.optimizer import DistributedOptimizer
from ..world.join import current
from . import async_save, load, run_history
from .collective import CheckpointError
from .commit import SaveJob
from .directory import resolve
from .manifest import Json
from .open_checkpoint import Opened, open_newest
from .save import agree_to_save, data_of_parts
from .save_request import SaveRequest
from .targets import LoadTarget
from .user_data import Sampler

Folder = str | os.PathLike[str]


class Loaded(NamedTuple):
    """The result of `load_checkpoint`, besides the model's and optimizer's arrays.

    Attributes:
        step: of the checkpoint.
        extra: the user's own data, as it was saved.
        path: the checkpoint's folder.
        skipped: for each newer checkpoint that was skipped, the reason.
    """

    step: int
    extra: Json
    path: Path
    skipped: tuple[str, ...]


def save_checkpoint(
    folder: Folder,
    step: int,
    model: Tree,
    optimizer: DistributedOptimizer,
    extra: object = None,
    *,
    sampler: Sampler | None = None,
    keep: int | None = 3,
    background: bool = False,
) -> Path:
    """Save a training run, to resume it on any number of ranks. Called by all ranks.

    Each rank writes 1/N of the bytes; one rename commits them. A job killed at any
    time leaves the older checkpoints intact. Each rank's `mx.random` key is saved too.

    Args:
        folder: of all checkpoints, the same text on all ranks; on a shared disk, or
            on each host's own. One run at a time may save into it.
        step: the number of the last step taken.
        model: a module or tree of arrays; frozen parameters and buffers are saved
            too. If buffers differ over ranks, rank 0's are saved.
        extra: JSON values and arrays (mx or numpy) in dicts, lists and tuples.
        keep: how many checkpoints of the run to keep, with this one; None keeps all.
            If the run did not load from the folder, what was there is another's.
        background: copy the data, write it in a thread. The next save and the exit
            wait for it. If it fails, the next `update`, save or the exit says so.

    Returns:
        The checkpoint's folder.

    Raises:
        MismatchError: on all ranks, if what they save differs or can't be saved.
        CheckpointError: on all ranks, if a file can't be written, or another job is
            saving into the folder.
    """
    world = _require_distributed(optimizer).world
    step = _as_int(step)
    request = SaveRequest(str(folder), resolve(folder), step, keep, background)
    with world.recorder.call("save_checkpoint", step if type(step) is int else None):
        return _save(request, optimizer, model, extra, sampler)


def _save(
    request: SaveRequest,
    optimizer: DistributedOptimizer,
    model: Tree,
    extra: object,
    sampler: Sampler | None,
) -> Path:
    world = optimizer.world
    failed = async_save.wait(world)
    snapshot, plan = agree_to_save(request, optimizer, model, extra, sampler, failed)
    saver = async_save.saver_of(world) if request.background else None
    data = data_of_parts(plan.layout.parts[world.rank], snapshot)
    job = SaveJob(plan, data, world.control)
    if saver is not None:
        job.copy_data()
        saver.start(job)
    else:
        world.recorder.phase("writing")
        with job:
            job.commit(*job.write(), world.control.all_gather_bytes)
    return request.folder / plan.save.name


def load_checkpoint(
    folder: Folder,
    model: Tree,
    optimizer: DistributedOptimizer | None = None,
    *,
    step: int | None = None,
    sampler: Sampler | None = None,
    missing_ok: bool = False,
) -> Loaded | None:
    """Load a checkpoint on any number of ranks, with any `shard`. Called by all ranks.

    Waits for this process's background saves. Everything is read and verified before
    anything changes, so that for a moment a rank has its arrays twice.

    Args:
        folder: as for `save_checkpoint`; a file that a host lacks is sent to it. Or a
            folder with files of one MLX process, which have no checksums and no step:
            model.safetensors and, for an optimizer, its state in optimizer.safetensors.
        model: a module, or a tree of dicts and lists, whose arrays are replaced.
        optimizer: is initialized if need be; None loads the model alone.
        step: None loads the newest good checkpoint, and warns of newer damaged ones.
        sampler: resumes after the last batch that it returned.
        missing_ok: return None if the folder has no checkpoint.

    `mx.random` resumes from each rank's key; new ranks get new keys.

    Raises:
        MismatchError: on all ranks, if their arguments differ.
        CheckpointError: on all ranks, and nothing was changed, if no checkpoint is
            good, or it is of another model, optimizer or data.
    """
    world = current() if optimizer is None else _require_distributed(optimizer).world
    step = None if step is None else _as_int(step)
    request = load.LoadRequest(str(folder), resolve(folder), step, missing_ok)
    with world.recorder.call("load_checkpoint"):
        async_save.wait_for_all()
        target = load.agree_to_load(request, world, model, optimizer, sampler)
        opened = open_newest(request.folder, step, target, world.control)
        if opened is None and not missing_ok:
            raise CheckpointError(f"there is no checkpoint in {request.folder}")
        loaded = None if opened is None else _load(opened, target)
        run_history.resumed(request.folder)
        return loaded


def _load(opened: Opened, target: LoadTarget) -> Loaded:
    with opened.reader:
        extra = load.replace_all(opened, target)
    for reason in opened.skipped if target.world.is_root else ():
        warnings.warn(f"skipped a checkpoint: {reason}", stacklevel=3)
    manifest = opened.contents.manifest
    step = 0 if manifest is None else manifest.step
    return Loaded(step, extra, opened.contents.folder, opened.skipped)


def _as_int(step: int | np.integer[Any]) -> int:
    """Return a step as an int where it is one of NumPy's."""
    return int(step) if isinstance(step, np.integer) else step


def _require_distributed(optimizer: DistributedOptimizer) -> DistributedOptimizer:
    if not isinstance(optimizer, DistributedOptimizer):
        raise ValueError(
            f"the optimizer is a {type(optimizer).__name__}; wrap it: "
            "mlxdist.DistributedOptimizer(optimizer)"
        )
    return optimizer
