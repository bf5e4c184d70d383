"""Where loaded arrays go: into which model, and into this rank's part of the state."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import msgspec

from ..arrays.dtypes import dtype_name
from ..arrays.trees import all_parameters, is_replaceable, put
from ..arrays.types import Array, Tree
from ..layout.wording import shortened
from ..optim.resumable_state import ResumableState
from ..world.world import World
from .manifest import Manifest, SavedArray
from .reader import Contents
from .snapshot import scalars
from .state_targets import find_state, may_be_number, pair_problems
from .target import Target, Targets, mismatch
from .user_data import Sampler

_MAX_PROBLEMS = 5  # that are listed in an error


class LoadTarget(NamedTuple):
    """What a checkpoint is loaded into."""

    world: World
    model: Tree
    optimizer: ResumableState | None
    sampler: Sampler | None


def with_quoted_keys(contents: Contents, model: Tree) -> Contents:
    """Return the contents with the model's path texts, whose keys may be quoted.

    Files of plain MLX and checkpoints of mlxdist 0.1.0 have the keys without quotes.
    """
    paths = list(all_parameters(model))
    saved = {array.path for array in contents.arrays if array.kind == "parameters"}
    counts = Counter(path.dotted for path in paths)
    quoted = {
        path.dotted: path.text
        for path in paths
        if path.dotted in saved and path.text not in saved and counts[path.dotted] == 1
    }
    arrays = tuple(
        msgspec.structs.replace(array, path=quoted[array.path])
        if array.kind in ("parameters", "optimizer") and array.path in quoted
        else array
        for array in contents.arrays
    )
    return contents._replace(arrays=arrays) if quoted else contents


def find_targets(contents: Contents, into: LoadTarget) -> Targets:
    """Return a target for each array that this rank needs.

    Raises:
        ValueError: if the checkpoint is of another model, optimizer or sampler.
    """
    if into.sampler is not None:
        _check_sampler(contents.manifest, into.sampler)
    targets: Targets = {}
    problems = list(_parameters(contents, into.model, targets))
    if into.optimizer is not None:
        _refuse_accumulated(contents.manifest)
        if contents.manifest is not None:
            into.optimizer.check_counters(contents.manifest.counters)
        problems += _optimizers(contents.manifest, into.optimizer)
        problems += _scalars(contents, into.optimizer, targets)
        problems += pair_problems(contents.arrays)
        problems += find_state(contents.by_identity, into.optimizer, targets)
        _new_state(contents, into.optimizer, targets)
    if problems:
        count = len(problems) - _MAX_PROBLEMS
        more = f"\n  and {count} more" if count > 0 else ""
        listed = "\n  ".join(map(shortened, problems[:_MAX_PROBLEMS]))
        raise ValueError(f"it is not of this model and optimizer:\n  {listed}{more}")
    return targets


def _check_sampler(manifest: Manifest | None, sampler: Sampler) -> None:
    """Raise ValueError if the sampler can't resume from the saved one's position."""
    if manifest is None or manifest.sampler is None:
        raise ValueError("it was saved without a sampler: leave out sampler=")
    before = copy.deepcopy(sampler.state_dict())
    try:
        copy.copy(sampler).load_state_dict(manifest.sampler)
    except TypeError as error:
        raise ValueError(str(error)) from None
    finally:
        if sampler.state_dict() != before:  # the copy shares parts with it
            sampler.load_state_dict(before)


def _refuse_accumulated(manifest: Manifest | None) -> None:
    count = 0 if manifest is None else manifest.counters.get("accumulated", 0)
    if manifest is not None and count:
        raise ValueError(
            f"it was saved in the middle of a step, after {count} of its micro-batches,"
            f" by mlxdist {manifest.versions.get('mlxdist')}, and can't be resumed by "
            "this one: load another with step=, or load the model alone, or resume it "
            "with that mlxdist and save after the step's last update"
        )


def _parameters(contents: Contents, model: Tree, targets: Targets) -> Iterator[str]:
    saved = contents.by_identity
    parameters = all_parameters(model)
    for path, array in parameters.items():
        if not is_replaceable(model, path):
            yield f"{path or 'the model'} is in no dict, list or module, to be replaced"
        identity = ("parameters", path.text, "")
        problem = _mismatch(saved.get(identity), array, f"parameter {path}")
        if problem is not None:
            yield problem
        else:
            shape = tuple(array.shape)
            targets[identity] = Target(0, array.size, shape, partial(put, model, path))
    texts = {path.text for path in parameters}
    for surplus in contents.arrays:
        if surplus.kind == "parameters" and surplus.path not in texts:
            found = f"{surplus.path} {surplus.dtype}{list(surplus.shape)}"
            yield f"it has parameter {found}, which the model lacks"


def _mismatch(saved: SavedArray | None, array: Array, what: str) -> str | None:
    """Return how a saved array differs in dtype and shape from this rank's."""
    return mismatch(saved, f"{dtype_name(array.dtype)}{list(array.shape)}", what)


def _optimizers(manifest: Manifest | None, state: ResumableState) -> Iterator[str]:
    """Yield where another class of optimizer updated a parameter."""
    saved = manifest.optimizer if manifest is not None else ()
    names = {path: optimizer.name for optimizer in saved for path in optimizer.paths}
    seen = set()
    for leaf in state.leaves:
        for path in leaf.paths:
            pair = names.get(path, leaf.name), leaf.name
            if pair not in seen and len(set(map(_class_name, pair))) > 1:
                seen.add(pair)
                yield f"{path} was updated by {pair[0]}, now by {pair[1]}"


def _class_name(name: str) -> str:
    """Return the class without its module, which is `__main__` in a script."""
    return name.rpartition(".")[2]


def _scalars(
    contents: Contents, state: ResumableState, targets: Targets
) -> Iterator[str]:
    by_identity = contents.by_identity
    arrays = scalars(state)
    for at, name in state.scalars():
        identity = ("scalars", at.rstrip("."), name)
        array = arrays[identity]
        saved, shape = by_identity.get(identity), tuple(array.shape)
        problem = _mismatch(saved, array, f"optimizer's {at}{name}")
        if problem is not None and (shape or not may_be_number(saved)):
            yield problem
        else:
            put_scalar = partial(state.put_scalar, at, name)
            convert = partial(state.scalar_like, at, name)
            targets[identity] = Target(0, array.size, shape, put_scalar, convert)


def _new_state(contents: Contents, state: ResumableState, targets: Targets) -> None:
    """Add targets for state that an optimizer creates at its first step."""
    local = state.arrays()
    path_of = {path.text: path for path in state.plan.by_path}
    for saved in contents.arrays:
        path, key = path_of.get(saved.path), saved.key
        if saved.kind != "optimizer" or path is None or key in local.get(path, {}):
            continue
        if saved.identity in targets:
            continue
        new = state.accept_new(path, key, saved.shape)
        if new is not None:
            put_new = partial(state.put, path, key)
            targets[saved.identity] = Target(new.start, new.stop, new.shape, put_new)
