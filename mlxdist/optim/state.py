"""The optimizer's state by path: read, written, cut into shards, gathered from them.

MLX's state holds 'step', 'learning_rate' and the like, and a tree in which each
parameter has a dict of arrays. Here that tree is flat: `{path: {key: array}}`, where a
key is the text of a path in the parameter's dict.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

import mlx.core as mx

from ..arrays.trees import dtype_name, leaves_of, put, slot, unflatten
from ..arrays.types import Array, Named, Tree
from ..comm.collectives import Collectives
from ..layout.entries import ITEM_SIZES, Entry
from ..layout.paths import KeyPath
from ..layout.sharding import Plan
from .inner_optimizer import InnerOptimizer, Leaf, root_keys

StateTree = dict[KeyPath, Named]
# {text of a path: {key: [dtype, *shape]}}
Shapes = dict[str, dict[str, list[str | int]]]


def parameter_state(tree: Tree, path: KeyPath) -> Tree | None:
    """Return the dict that a state tree has for a parameter, or None."""
    try:
        container, key = slot(tree, path)
        found = container[key]
    except (LookupError, TypeError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def dicts(inner: InnerOptimizer, paths: Iterable[KeyPath]) -> dict[KeyPath, Tree]:
    """Return the optimizer's own dict of each of the given paths that has one."""
    states = {p: parameter_state(inner.owner(p).optimizer.state, p) for p in paths}
    return {path: state for path, state in states.items() if state is not None}


def read(inner: InnerOptimizer, paths: Iterable[KeyPath]) -> StateTree:
    """Return the arrays of the given paths; nothing is evaluated."""
    return {path: _arrays(state) for path, state in dicts(inner, paths).items()}


def write(inner: InnerOptimizer, tree: StateTree) -> None:
    """Replace arrays that `read` returned."""
    for path, state in dicts(inner, tree).items():
        for key, array in tree[path].items():
            put(state, KeyPath.parse(key), array)


def _arrays(state: Tree) -> Named:
    leaves = leaves_of(state).items()
    return {path.text: leaf for path, leaf in leaves if isinstance(leaf, mx.array)}


def nbytes(tree: StateTree) -> int:
    return sum(array.nbytes for arrays in tree.values() for array in arrays.values())


def reset(inner: InnerOptimizer, plan: Plan) -> None:
    """Drop all per-parameter state; step, learning rate and the like stay.

    Raises:
        ValueError: where a parameter has the name of one of those.
    """
    tree = root_keys(plan.by_path)
    for leaf in inner.leaves:
        state = leaf.optimizer.state
        clash = sorted(leaf.scalars().keys() & tree)
        if clash:
            raise ValueError(
                f"a parameter is called {clash[0]!r}, as a part of the state of "
                f"{leaf.name} is; rename it, or put it into a module"
            )
        for name in tree & state.keys():
            del state[name]
        leaf.optimizer.state = state  # the same dict, which a compiled step may hold


def share_scalars(inner: InnerOptimizer, comm: Collectives) -> None:
    """Give all ranks the root's step, learning rate and the like."""
    for leaf in inner.leaves:
        for name, value in leaf.scalars().items():
            leaf.optimizer.state[name] = comm.broadcast(value, 0)


# -- shards


def is_slice(shape: tuple[int, ...], span: tuple[int, int], plan: Plan) -> bool:
    """Return whether a shape is that of a parameter's slice, and not of its whole.

    The one rule of which arrays of state are cut: with "elements", those that are as
    long as the slice of the parameter. A scalar state of an optimizer has no dimension.
    """
    return plan.strategy == "elements" and shape == (span[1] - span[0],)


def cut(full: StateTree, plan: Plan, rank: int) -> StateTree:
    """Return a rank's shard of a full state."""
    shard: StateTree = {}
    for path, span in plan.shard(rank).items():
        if path in full:
            entry = plan.by_path[path]
            shard[path] = {
                key: _cut_array(array, entry, span, plan)
                for key, array in full[path].items()
            }
    return shard


def _cut_array(array: Array, entry: Entry, span: tuple[int, int], plan: Plan) -> Array:
    if plan.strategy == "elements" and tuple(array.shape) == entry.shape:
        return array.reshape(-1)[span[0] : span[1]]
    return array


def share(tree: StateTree, paths: Iterable[KeyPath], comm: Collectives) -> StateTree:
    """Return the root's state of the paths on every rank; others may have none."""
    shapes = _gather_shapes(tree, comm)[0]
    shared = [path for path in paths if path.text in shapes]
    return {path: _broadcast(comm, tree, shapes, path, 0) for path in shared}


def gather(tree: StateTree, plan: Plan, comm: Collectives) -> StateTree:
    """Return the full state on every rank, from the shard on each.

    Sends a rank's own state to all others, an array at a time.
    """
    if not plan.sharded:
        return tree
    shapes = _gather_shapes(tree, comm)
    shards = [plan.shard(rank) for rank in range(plan.ranks)]
    full: StateTree = {}
    for entry in plan.entries:
        ranks = [r for r in range(plan.ranks) if entry.path.text in shapes[r]]
        parts = [
            _broadcast(comm, tree, shapes[rank], entry.path, rank) for rank in ranks
        ]
        if parts:
            spans = [shards[rank][entry.path] for rank in ranks]
            full[entry.path] = _joined(parts, spans, entry, plan)
    return full


def _shapes(tree: StateTree) -> Shapes:
    return {
        path.text: {key: [dtype_name(a.dtype), *a.shape] for key, a in arrays.items()}
        for path, arrays in tree.items()
    }


def _gather_shapes(tree: StateTree, comm: Collectives) -> list[Shapes]:
    local = json.dumps(_shapes(tree)).encode()
    return [json.loads(text) for text in comm.all_gather_bytes(local)]


def _broadcast(
    comm: Collectives, tree: StateTree, shapes: Shapes, path: KeyPath, rank: int
) -> Named:
    arrays: Named = {}
    for key, (dtype, *shape) in shapes[path.text].items():
        assert dtype in ITEM_SIZES, dtype
        if comm.rank == rank:
            array = tree[path][key]
        else:
            array = mx.zeros(tuple(map(int, shape)), getattr(mx, str(dtype)))
        arrays[key] = comm.broadcast(array, rank)
    return arrays


def _joined(
    parts: list[Named], spans: list[tuple[int, int]], entry: Entry, plan: Plan
) -> Named:
    joined: Named = {}
    for key, array in parts[0].items():
        slices = [part[key] for part in parts]
        pairs = zip(slices, spans, strict=True)
        if all(is_slice(tuple(array.shape), span, plan) for array, span in pairs):
            joined[key] = mx.concatenate(slices).reshape(entry.shape)
        else:  # one for the whole tensor, the same on all
            joined[key] = array
    return joined


def misfit(wanted: StateTree, given: StateTree) -> str | None:
    """Return how a state differs from what the optimizer holds, or None."""
    found_shapes = _shapes(given)
    for path, arrays in _shapes(wanted).items():
        found = found_shapes.get(path, {})
        for key, (dtype, *shape) in arrays.items():
            if key not in found:
                return f"the state has nothing for {path}.{key}, wanted {dtype}{shape}"
            if found[key] != [dtype, *shape]:
                has_dtype, *has_shape = found[key]
                return (
                    f"the state of {path}.{key} is {has_dtype}{has_shape}, wanted "
                    f"{dtype}{shape}"
                )
    return None


# -- MLX's own layout


def to_mlx(inner: InnerOptimizer, full: StateTree) -> Tree:
    """Return a full state in MLX's layout, as the unwrapped optimizer would hold it."""
    parts = {}
    for leaf in inner.leaves:
        states = {p: _nested_keys(full[p]) for p in leaf.paths if p in full}
        parts[leaf.at] = {**leaf.scalars(), **inner.nested(states)}
    return _assembled(parts, "")


def _assembled(parts: dict[str, Tree], at: str) -> Tree:
    """Return the state of the optimizer at a prefix, from those of its leaves."""
    if at in parts:
        return parts[at]
    inside = [part.removeprefix(at) for part in parts if part.startswith(at)]
    count = len({part.split(".")[1] for part in inside})
    return {"states": [_assembled(parts, f"{at}states.{i}.") for i in range(count)]}


def _nested_keys(arrays: Named) -> Tree:
    return unflatten({KeyPath.parse(key): array for key, array in arrays.items()})


def from_mlx(inner: InnerOptimizer, state: Tree, paths: Iterable[KeyPath]) -> StateTree:
    """Return the given paths' arrays of a state in MLX's layout."""
    found: StateTree = {}
    for path in paths:
        arrays = parameter_state(_part_of(inner.owner(path), state), path)
        if arrays is not None:
            found[path] = _arrays(arrays)
    return found


def scalars_from_mlx(inner: InnerOptimizer, state: Tree) -> list[Named]:
    """Return step, learning rate and the like of each leaf, of a full state."""
    return [
        {name: _part_of(leaf, state)[name] for name in leaf.scalars()}
        for leaf in inner.leaves
    ]


def write_scalars(inner: InnerOptimizer, values: list[Named]) -> None:
    for leaf, scalars in zip(inner.leaves, values, strict=True):
        leaf.optimizer.state.update(scalars)


def _part_of(leaf: Leaf, state: Tree) -> Tree:
    for part in filter(None, leaf.at.split(".")):
        state = state[int(part)] if isinstance(state, list | tuple) else state[part]
    return state
