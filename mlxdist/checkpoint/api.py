"""`save_checkpoint` and `load_checkpoint`."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

from ..arrays import device
from ..arrays.types import Tree
from ..comm.agreement import agree
from ..optim.optimizer import DistributedOptimizer
from ..world.join import current
from ..world.world import World
from . import async_save, load, run_history
from .collective import CheckpointError, attempt
from .commit import SaveJob
from .directory import Save
from .load import LoadRequest
from .manifest import Json
from .open_checkpoint import Opened, list_saves, open_newest
from .save import agree_to_save, data_of_parts
from .save_request import SaveRequest
from .targets import LoadTarget
from .user_data import Sampler

Folder = str | os.PathLike[str]
Request = TypeVar("Request", SaveRequest, LoadRequest)

_MOST_RETRIES = 9  # of a load while another job saves, and removes what is read


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


@contextmanager
def _clearing_cache() -> Iterator[None]:
    """Clear MLX's cache in the end: no step asks for arrays of the sizes of copies."""
    yield
    device.clear_cache()


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

    def read() -> SaveRequest:
        _require_distributed(optimizer)
        return SaveRequest.of(folder, step, keep, background=background)

    world = _world_of(optimizer)
    request = _read_arguments(world, "save_checkpoint", read)
    with _clearing_cache(), world.recorder.call("save_checkpoint", request.number):
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

    def read() -> LoadRequest:
        if optimizer is not None:
            _require_distributed(optimizer)
        return LoadRequest.of(folder, step, missing_ok=missing_ok)

    world = _world_of(optimizer)
    with _clearing_cache(), world.recorder.call("load_checkpoint"):
        request = _read_arguments(world, "load_checkpoint", read)
        async_save.wait_for_all()
        target = load.agree_to_load(request, world, model, optimizer, sampler)
        loaded = _load_newest(request, target)
        run_history.resumed(request.folder)
        return loaded


def _load_newest(request: LoadRequest, target: LoadTarget) -> Loaded | None:
    """Load the newest good checkpoint; again where another job removed it meanwhile."""
    saves = list_saves(request.folder, target.world.control)
    for _ in range(_MOST_RETRIES):
        try:
            return _open_and_load(request, saves, target)
        except CheckpointError:
            before, saves = saves, list_saves(request.folder, target.world.control)
            if set(before) <= set(saves):
                raise
    return _open_and_load(request, saves, target)


def _open_and_load(
    request: LoadRequest, saves: Sequence[Save], target: LoadTarget
) -> Loaded | None:
    folder, step = request.folder, request.step
    opened = open_newest(folder, saves, step, target, target.world.control)
    if opened is not None:
        return _load(opened, target)
    if not request.missing_ok:
        raise CheckpointError(f"there is no checkpoint in {folder}")
    return None


def _load(opened: Opened, target: LoadTarget) -> Loaded:
    with opened.reader:
        extra = load.replace_all(opened, target)
    for reason in opened.skipped if target.world.is_root else ():
        warnings.warn(f"skipped a checkpoint: {reason}", stacklevel=5)
    manifest = opened.contents.manifest
    step = 0 if manifest is None else manifest.step
    return Loaded(step, extra, opened.contents.folder, opened.skipped)


def _world_of(optimizer: object) -> World:
    """Return the optimizer's world, or the process's without such an optimizer."""
    return optimizer.world if isinstance(optimizer, DistributedOptimizer) else current()


def _read_arguments(world: World, call: str, read: Callable[[], Request]) -> Request:
    """Return this rank's arguments.

    Raises:
        MismatchError: on all ranks, if those of one can't be read: it has no working
            folder any more, say.
    """
    request, problem = attempt(read)
    if request is None:
        agree(world.control, call, problem=problem)
    assert request is not None
    return request


def _require_distributed(optimizer: DistributedOptimizer) -> DistributedOptimizer:
    if not isinstance(optimizer, DistributedOptimizer):
        raise ValueError(
            f"the optimizer is a {type(optimizer).__name__}; wrap it: "
            "mlxdist.DistributedOptimizer(optimizer)"
        )
    return optimizer
