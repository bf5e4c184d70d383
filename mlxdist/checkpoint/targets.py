"""Where the arrays of a checkpoint go: into which model, which optimizer's share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from ..arrays.trees import dtype_name
from ..arrays.types import Array, Tree
from ..optim.inner import owner_of
from ..optim.masters import AVERAGE, MASTER
from .manifest import Manifest, SavedArray
from .snapshot import Identity, flat_parameters, leaves_of, places, scalars

_TOLD = 5  # misfits that are named


class Target(NamedTuple):
    """Elements [start, stop) that this rank wants of an array, and who takes them."""

    start: int
    stop: int
    shape: tuple[int, ...]
    put: Callable[[Array], None]


Targets = dict[Identity, Target]


def fit(manifest: Manifest, model: Tree, optimizer: Any) -> Targets:
    """A target for each array that this rank needs.

    Raises:
        ValueError: where the checkpoint is of another model or another optimizer.
    """
    found: Targets = {}
    misfits = list(_parameters(manifest, model, found))
    if optimizer is not None:
        misfits += _classes(manifest, optimizer)
        misfits += _scalars(manifest, optimizer, found)
        misfits += _state(manifest, optimizer, found)
    if misfits:
        more = f"\n  and {len(misfits) - _TOLD} more" if len(misfits) > _TOLD else ""
        told = "\n  ".join(misfits[:_TOLD])
        raise ValueError(f"it is not of this model and optimizer:\n  {told}{more}")
    return found


def _parameters(manifest: Manifest, model: Tree, found: Targets) -> Iterator[str]:
    wanted = flat_parameters(model)
    for path, array in wanted.items():
        saved = manifest.by_identity.get(("parameters", path, ""))
        problem = _misfit(saved, array, f"parameter {path}")
        if problem or saved is None:
            yield str(problem)
        else:
            put = _Place(model, path)
            found[saved.identity] = Target(0, saved.size, saved.shape, put)
    for saved in manifest.arrays:
        if saved.kind == "parameters" and saved.path not in wanted:
            yield f"it has {saved.path} {saved.dtype}{list(saved.shape)}, the model not"


def _misfit(saved: SavedArray | None, array: Array, what: str) -> str | None:
    wanted = f"{dtype_name(array.dtype)}{list(array.shape)}"
    if saved is None:
        return f"it has no {what}, wanted {wanted}"
    found = f"{saved.dtype}{list(saved.shape)}"
    return None if found == wanted else f"its {what} is {found}, wanted {wanted}"


class _Place:
    """Puts an array where a model, or a tree of dicts and lists, has it."""

    def __init__(self, tree: Any, path: str):
        *parents, last = path.split(".")
        for part in parents:
            tree = tree[int(part)] if isinstance(tree, list | tuple) else tree[part]
        if isinstance(tree, tuple):
            raise ValueError(f"{path} is in a tuple, which can't change: use a list")
        self.tree, self.key = tree, int(last) if isinstance(tree, list) else last

    def __call__(self, array: Array) -> None:
        self.tree[self.key] = array


def _classes(manifest: Manifest, optimizer: Any) -> Iterator[str]:
    """Which optimizer updates what; plain MLX files don't say."""
    had = {path: leaf.name for leaf in manifest.optimizer for path in leaf.paths}
    told = set()
    for leaf in leaves_of(optimizer):
        for path in leaf.paths:
            names = had.get(path, leaf.name), leaf.name
            if names not in told and len(set(map(_class_name, names))) > 1:
                told.add(names)
                yield f"{path} was updated by {names[0]}, now by {names[1]}"


def _class_name(name: str) -> str:
    """Without its module, which is `__main__` for a script's own class."""
    return name.rpartition(".")[2]


def _scalars(manifest: Manifest, optimizer: Any, found: Targets) -> Iterator[str]:
    leaves = {at.rstrip("."): leaf for at, leaf in places(optimizer._inner)}
    for identity, array in scalars(optimizer._inner).items():
        saved = manifest.by_identity.get(identity)
        _, at, name = identity
        problem = _misfit(saved, array, f"optimizer's {at}{'.' * bool(at)}{name}")
        if problem or saved is None:
            yield str(problem)
        else:
            put = _Place(leaves[at].state, name)
            found[identity] = Target(0, saved.size, saved.shape, put)


def _state(manifest: Manifest, optimizer: Any, found: Targets) -> Iterator[str]:
    plan, rank = optimizer._require_plan(), optimizer.world.rank
    ranges = plan.shard(rank)
    kinds = {array.kind for array in manifest.arrays}
    for kind, tree in optimizer._wanted(kinds).items():
        for path, held in tree.items():
            for key, array in held.items():
                saved = manifest.by_identity.get((kind, path, key))
                if saved is None and key == MASTER:
                    continue  # the parameter is it
                span = _span(saved, array, ranges[path], plan.by_path[path].shape)
                if (
                    saved is None
                    or span is None
                    or saved.dtype != dtype_name(array.dtype)
                ):
                    yield str(_misfit(saved, array, f"{kind} state {key} of {path}"))
                    continue
                put = _Restore(optimizer, kind, path, key)
                found[saved.identity] = Target(*span, tuple(array.shape), put)
    found |= _made_later(manifest, optimizer, ranges)


def _made_later(
    manifest: Manifest, optimizer: Any, ranges: dict[str, tuple[int, int]]
) -> Targets:
    """State that a user's own optimizer makes at its first step, not before."""
    own = optimizer._wanted(())["optimizer"]
    entries = optimizer._require_plan().by_path
    found: Targets = {}
    for saved in manifest.arrays:
        _, path, key = saved.identity
        if saved.kind != "optimizer" or path not in own or key in own[path]:
            continue
        owner = type(owner_of(optimizer._inner, path))
        if key in (MASTER, AVERAGE) or owner.__module__.startswith("mlx."):
            continue
        start, stop = ranges[path]
        part = optimizer._require_plan().strategy == "elements"
        cut = part and saved.shape == entries[path].shape
        span = (start, stop) if cut else (0, saved.size)
        shape = (stop - start,) if cut else saved.shape
        put = _Restore(optimizer, saved.kind, path, key)
        found[saved.identity] = Target(*span, shape, put)
    return found


def _span(
    saved: SavedArray | None,
    array: Array,
    owned: tuple[int, int],
    shape: tuple[int, ...],
) -> tuple[int, int] | None:
    """Which elements of a saved array make up what this rank holds."""
    held = tuple(array.shape)
    if saved is None or saved.dtype != dtype_name(array.dtype):
        return None
    if saved.shape == held:
        return 0, saved.size
    is_slice = saved.shape == shape and held == (owned[1] - owned[0],)
    return owned if is_slice else None


class _Restore:
    """Gives the optimizer back one array of a kind."""

    def __init__(self, optimizer: Any, kind: str, path: str, key: str):
        self.optimizer, self.kind, self.path, self.key = optimizer, kind, path, key

    def __call__(self, array: Array) -> None:
        self.optimizer._restore({self.kind: {self.path: {self.key: array}}})
