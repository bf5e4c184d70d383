"""Loading of a checkpoint that was chosen: read its arrays, then resume counters."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx

from ..arrays.types import Array, Tree
from ..comm.agreement import agree
from ..layout.entries import fingerprint
from ..optim.optimizer import DistributedOptimizer
from ..world.world import World
from . import user_data
from .collective import problem_of, require_success
from .directory import NO_FOLDER
from .manifest import Json, Manifest, SavedArray
from .open_checkpoint import Opened
from .reader import ArrayReader
from .targets import LoadTarget, Target, Targets
from .user_data import Sampler


class LoadRequest(NamedTuple):
    """The arguments of `load_checkpoint`; `folder` is `name` as a path of this host."""

    name: str
    folder: Path
    step: int | None
    missing_ok: bool

    @property
    def problem(self) -> str | None:
        """Which argument is not valid, and why."""
        if self.folder == NO_FOLDER:
            return f"folder is {self.name}; it must be a path"
        if self.step is not None and type(self.step) is not int:
            return f"step is {self.step!r}; it must be a whole number or None"
        return None


def agree_to_load(
    request: LoadRequest,
    world: World,
    model: Tree,
    optimizer: DistributedOptimizer | None,
    sampler: Sampler | None,
) -> LoadTarget:
    """Compare the ranks' arguments, and initialize the optimizer if need be.

    Raises:
        MismatchError: on all ranks, if the arguments differ or one can't load.
    """
    lines = [
        f"folder {request.name}",
        f"step {request.step}",
        f"missing_ok {request.missing_ok}",
        f"an optimizer {optimizer is not None}",
        f"a sampler {sampler is not None}",
    ]
    problem = request.problem
    try:
        if optimizer is not None and optimizer.is_initialized:
            optimizer.resumable_state("load")
    except ValueError as error:
        problem = problem or str(error)
    detail = fingerprint(lines)
    call = "load_checkpoint"
    agree(world.control, call, detail, lambda: lines, problem=problem)
    if optimizer is None:
        return LoadTarget(world, model, None, sampler)
    if not optimizer.is_initialized:
        optimizer.init(model)
    return LoadTarget(world, model, optimizer.resumable_state("load"), sampler)


def read_arrays(opened: Opened) -> Json:
    """Replace the arrays of model and optimizer, and return the user's `extra`."""
    contents, reader, targets, _ = opened
    all_gather = reader.comm.all_gather_bytes
    arrays: dict[str, Array] = {}
    extra = [array for array in contents.arrays if array.kind == "extra"]
    for array in extra:
        put = partial(operator.setitem, arrays, array.path)
        targets[array.identity] = Target(0, array.size, array.shape, put)
    # Extra first: it may turn out to be invalid while nothing is changed yet.
    _read(reader, targets, extra)
    decoded, problem = None, None
    try:
        if contents.manifest is not None:
            decoded = user_data.decode(contents.manifest.extra, arrays)
    except ValueError as error:
        problem = str(error)
    failure = "the checkpoint's extra can't be read"
    require_success(all_gather, failure, reader.problem or problem, None)
    _read(reader, targets, [a for a in contents.arrays if a.kind != "extra"])
    failure = "the checkpoint could not be read to its end; the model is half loaded"
    require_success(all_gather, failure, reader.final_problem(), None)
    return decoded


def _read(reader: ArrayReader, targets: Targets, arrays: Sequence[SavedArray]) -> None:
    for array in arrays:
        target = targets.get(array.identity)
        start, stop = (target.start, target.stop) if target is not None else (0, 0)
        flat = reader.fetch(array, start, stop)
        if target is not None and reader.problem is None:
            try:
                shaped = flat.reshape(target.shape)
                mx.eval(shaped)
                target.put(shaped)
            except Exception as error:  # of any kind, since the other ranks wait for it
                reader.problem = f"{array.name}: {problem_of(error)}"


def resume(manifest: Manifest | None, target: LoadTarget) -> int:
    """Restore counters, mx.random and the sampler; return the step, 0 if unknown."""
    if target.optimizer is not None:
        target.optimizer.put_counters({} if manifest is None else manifest.counters)
    if manifest is None:
        return 0
    if target.optimizer is not None and manifest.random:
        user_data.set_random_key(manifest.random, target.world.rank)
    if target.sampler is not None and manifest.sampler is not None:
        target.sampler.load_state_dict(manifest.sampler)
    return manifest.step
