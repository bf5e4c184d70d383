"""Checkpoints: saved in shards, whole or not at all, loaded on any number of ranks."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any, NamedTuple

from ..arrays.types import Tree
from ..comm.agreement import agree
from ..comm.together import CheckpointError
from ..layout.entries import fingerprint
from ..optim import refused
from ..optim.optimizer import DistributedOptimizer
from ..world.join import current
from . import async_save as behind
from . import commit as writing
from . import load as loading
from . import save as saving
from . import user_data as extras
from .manifest import Manifest
from .snapshot import snapshot
from .targets import Targets, fit

Folder = str | os.PathLike[str]


class Loaded(NamedTuple):
    """What `load_checkpoint` found beside the model and the optimizer.

    Attributes:
        step: of the checkpoint.
        extra: the user's own, as it was saved.
        path: the checkpoint's folder.
        skipped: why newer ones were passed over, one text each.
    """

    step: int
    extra: Any
    path: Path
    skipped: tuple[str, ...]


def save_checkpoint(
    folder: Folder,
    step: int,
    model: Tree,
    optimizer: DistributedOptimizer,
    extra: Any = None,
    *,
    sampler: Any = None,
    keep: int | None = 3,
    background: bool = False,
) -> Path:
    """Saves a training run, so that it goes on from here on any number of ranks.

    Called by all ranks. Each writes what it owns, and a share of what all have, as
    safetensors into a folder beside; once all files are on the disk, it is renamed in
    one step. Killed at any time, it leaves the checkpoints as they were.

    Args:
        folder: where checkpoints go, the same words on all ranks: on a disk that all
            hosts share, or on each host's own, where it may be relative or begin with
            `~`. One run at a time may save into it.
        step: the number of the step that was just taken.
        model: a module, or a tree of arrays; all its parameters are saved, the frozen
            ones and buffers too. Buffers that differ between ranks are rank 0's.
        optimizer: with its state, step, learning rate and counts.
        extra: JSON values and arrays (mx or numpy) in dicts, lists and tuples, the
            same on all ranks.
        sampler: a ShardedSampler, or what else has a `state_dict()`.
        keep: how many checkpoints stay, this one included; None keeps all.
        background: copies what this rank writes and returns; a thread writes it while
            training goes on. The next save waits for it, the program's end as well. If
            it fails, the next `update`, save, or the program's end says so.

    Saved too: each rank's key of `mx.random`. Each rank writes about 1/N of all bytes,
    and reads all parameters once to compare their checksums over the ranks.

    Returns:
        The checkpoint's folder.

    Raises:
        MismatchError: on all ranks, where they are about to save different things;
            also where parameters have drifted apart.
        CheckpointError: on all ranks, where it can't be written, with the reason.
    """
    world = _optimizer(optimizer, "save").world
    request = saving.Request(str(folder), _path(folder), step, keep, background)
    with world.recorder.call("save_checkpoint", step):
        taken, save = saving.agree_to_save(
            request,
            optimizer,
            lambda: snapshot(model, optimizer, extra, sampler),
            behind.failure(world),
        )
        job = saving.begin(request, save, taken, optimizer)
        data = writing.data_of(job, taken)
        if background:
            copies = [part.copy() for part in data]
            thread = behind.background(world)
            thread.start(lambda: writing.finish(job, copies, thread.exchange))
        else:
            world.recorder.phase("writing")
            writing.finish(job, data, world.control.all_gather_bytes)
    return request.folder / save.name


def load_checkpoint(
    folder: Folder,
    model: Tree,
    optimizer: DistributedOptimizer | None = None,
    *,
    step: int | None = None,
    sampler: Any = None,
    missing_ok: bool = False,
) -> Loaded | None:
    """Loads what `save_checkpoint` saved, on any number of ranks and any `shard`.

    Called by all ranks. All checksums are compared before anything changes; then each
    rank reads the ranges that it needs, an array at a time, so that it holds one array
    more than the model and its share of the state.

    Args:
        folder: as for `save_checkpoint`. A file that some hosts don't have is read by
            one that does, and sent to all. Or a folder with the plain files of one MLX
            process: model.safetensors and, for an optimizer, optimizer.safetensors,
            its flattened state. Those hold no checksums, and no step.
        model: a module, or a tree of dicts and lists, whose arrays are replaced.
        optimizer: initialized if it is not yet; None loads the model alone.
        step: None takes the last good checkpoint, and warns of newer damaged ones.
        sampler: goes on behind the last batch that was handed out.
        missing_ok: returns None where the folder has no checkpoint at all.

    `mx.random` goes on with each rank's own key; ranks that were not there get new
    ones.

    Raises:
        CheckpointError: on all ranks, and nothing was changed, where there is no good
            checkpoint, or it is of another model, optimizer or data.
    """
    world = current() if optimizer is None else _optimizer(optimizer, "load").world
    place = _path(folder)
    lines = [f"folder {folder}", f"step {step}", f"missing_ok {missing_ok}"]
    lines += [
        f"an optimizer {optimizer is not None}",
        f"a sampler {sampler is not None}",
    ]
    comm = world.control

    def fit_all(manifest: Manifest) -> Targets:
        loading.check_sampler(manifest, sampler)
        return fit(manifest, model, optimizer)

    with world.recorder.call("load_checkpoint"):
        agree(comm, "load_checkpoint", fingerprint(lines), lambda: lines)
        if optimizer is not None and optimizer._plan is None:
            optimizer.init(model)
        opened = loading.open_last(place, step, comm, fit_all, optimizer)
        if opened is None:
            if missing_ok:
                return None
            raise CheckpointError(f"there is no checkpoint in {place}")
        for reason in opened.skipped if world.is_root else ():
            warnings.warn(f"passed over a checkpoint: {reason}", stacklevel=2)
        user = loading.read(opened.source, opened.targets, comm)
        opened.source.close()
        manifest = opened.source.manifest
        if optimizer is not None:
            optimizer._restore_counters(manifest.counters)
        if optimizer is not None and manifest.random:
            extras.set_random_key(manifest.random, world.rank)
        if sampler is not None:
            sampler.load_state_dict(manifest.sampler)
    return Loaded(manifest.step, user, opened.place, opened.skipped)


def _path(folder: Folder) -> Path:
    return Path(os.path.abspath(os.path.expanduser(folder)))


def _optimizer(optimizer: Any, what: str) -> DistributedOptimizer:
    if not isinstance(optimizer, DistributedOptimizer):
        raise ValueError(
            f"the optimizer is a {type(optimizer).__name__}; wrap it: "
            "mlxdist.DistributedOptimizer(optimizer)"
        )
    refused.refuse_lent(optimizer, what)
    return optimizer
