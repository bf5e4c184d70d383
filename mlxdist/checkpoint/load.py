"""Loading of a checkpoint that was chosen: all of it is read, then all is replaced."""

from __future__ import annotations

import copy
import operator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx

from ..arrays.types import Array, Tree
from ..comm.agreement import agree
from ..layout.entries import fingerprint
from ..optim import masters
from ..optim.optimizer import DistributedOptimizer
from ..optim.rollback import interrupts_wait
from ..world.world import World
from . import user_data
from .collective import AllGather, attempt, on_all_ranks
from .directory import NO_FOLDER, resolve
from .manifest import Json, Manifest
from .open_checkpoint import Opened
from .save_request import step_as_int
from .state_targets import companions
from .target import NOTHING, Loaded, Put, Target
from .targets import LoadTarget
from .user_data import Sampler


class LoadRequest(NamedTuple):
    """The arguments of `load_checkpoint`; `folder` is `name` as a path of this host."""

    name: str
    folder: Path
    step: int | None
    missing_ok: bool

    @classmethod
    def of(cls, folder: object, step: object, *, missing_ok: bool) -> LoadRequest:
        """Read the arguments. Raises an error of any kind if they can't be read."""
        return cls(str(folder), resolve(folder), step_as_int(step), missing_ok)

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


def replace_all(opened: Opened, into: LoadTarget) -> Json:
    """Replace what the checkpoint has of the model, optimizer and sampler, or nothing.

    Returns:
        The user's `extra`.

    Raises:
        CheckpointError: on all ranks, and nothing was changed.
    """
    reader, manifest = opened.reader, opened.contents.manifest
    all_gather = reader.comm.all_gather_bytes
    optimizer = into.optimizer
    key = masters.KEY if optimizer is None else optimizer.master_key
    staged, arrays = _read(opened, key)

    def finish() -> Json:
        reader.require_success()
        return None if manifest is None else user_data.decode(manifest.extra, arrays)

    failure = "the checkpoint can't be read, and nothing was changed"
    extra = on_all_ranks(all_gather, failure, finish)
    if into.sampler is not None:
        _resume_sampler(into.sampler, manifest, all_gather)
    with interrupts_wait():
        for put, value in staged:
            put(value)
        _resume_counters(manifest, into)
    return extra


def _read(
    opened: Opened, master_key: str
) -> tuple[list[tuple[Put, Loaded]], dict[str, Array]]:
    """Read this rank's part of all arrays; return what to put, and those of `extra`."""
    staged: list[tuple[Put, Loaded]] = []
    extra: dict[str, Array] = {}
    arrays = opened.contents.arrays
    together = companions(arrays, master_key)
    scales = {a.identity for a in together.values() if a.kind == "optimizer"}
    for array in arrays:
        if array.identity in scales:
            continue
        target = opened.targets.get(array.identity, NOTHING)
        if array.kind == "extra":
            put = partial(operator.setitem, extra, array.path)
            target = Target(0, array.size, array.shape, put)
        flat = [opened.reader.fetch(array, target.start, target.stop)]
        if array.identity in together:
            span = target.others[0] if target.others else (0, 0)
            flat.append(opened.reader.fetch(together[array.identity], *span))
        if target is not NOTHING and opened.reader.problem is None:
            value, problem = attempt(partial(_convert, target, *flat))
            if problem is not None:
                opened.reader.problem = f"{array.name}: {problem}"
            elif array.kind == "extra":
                target.put(value)
            else:
                staged.append((target.put, value))
    saved = opened.contents.by_identity
    unsaved = [t for identity, t in opened.targets.items() if identity not in saved]
    return staged + [(target.put, target.convert()) for target in unsaved], extra


def _convert(target: Target, flat: Array, *others: Array) -> Loaded:
    shaped = flat.reshape(target.shape)
    mx.eval(shaped)
    value = target.convert(shaped, *others[: len(target.others)])
    mx.eval(value)  # which may be a number, too
    return value


def _resume_sampler(
    sampler: Sampler, manifest: Manifest | None, all_gather: AllGather
) -> None:
    """Resume the sampler on all ranks, or on none. It may be a user's own class."""
    before: dict[str, Json] | None = None

    def resume() -> None:
        nonlocal before
        before = copy.deepcopy(sampler.state_dict())
        if manifest is not None and manifest.sampler is not None:
            sampler.load_state_dict(manifest.sampler)

    failure = "the sampler can't be resumed, and nothing was changed"
    try:
        on_all_ranks(all_gather, failure, resume)
    except BaseException:
        if before is not None:
            sampler.load_state_dict(before)
        raise


def _resume_counters(manifest: Manifest | None, into: LoadTarget) -> None:
    if into.optimizer is not None:
        into.optimizer.put_counters({} if manifest is None else manifest.counters)
        if manifest is not None:
            user_data.set_random_key(manifest.random, into.world.rank)
