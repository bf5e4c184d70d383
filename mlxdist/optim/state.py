"""An optimizer's state: read by path, gathered from its shards, and cut into them.

A state is MLX's: 'step', 'learning_rate' and the like, beside a tree in which each
parameter has a dict of arrays. Here the tree is flat: `{path: {key: array}}`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from ..arrays.trees import dtype_name, nested
from ..arrays.types import Array, Flat
from ..comm.collectives import Collectives
from ..layout.entries import ITEM_SIZES, Entry
from ..layout.sharding import Plan
from .inner import leaves, owner_of, roots

StateTree = dict[str, dict[str, Array]]
_MISSING: Any = object()


def _find(state: Any, path: str) -> Any:
    for part in path.split("."):
        if isinstance(state, dict):
            state = state.get(part, _MISSING)
        elif isinstance(state, list | tuple) and int(part) < len(state):
            state = state[int(part)]
        else:
            return _MISSING
        if state is _MISSING:
            return _MISSING
    return state


def _arrays(held: Any) -> Flat:
    return {k: v for k, v in tree_flatten(held) if isinstance(v, mx.array)}


def held(optimizer: Any, paths: Iterable[str]) -> dict[str, Any]:
    """The dict that a (resolved) optimizer has for each of the given paths."""
    found = {path: _find(owner_of(optimizer, path).state, path) for path in paths}
    return {path: own for path, own in found.items() if isinstance(own, dict)}


def read(optimizer: Any, paths: Iterable[str]) -> StateTree:
    """What a (resolved) optimizer holds for the given paths; nothing is evaluated."""
    return {path: _arrays(own) for path, own in held(optimizer, paths).items()}


def write(optimizer: Any, tree: StateTree) -> None:
    """Puts arrays in the place of those that `read` finds."""
    for path, arrays in tree.items():
        held = _find(owner_of(optimizer, path).state, path)
        for key, array in arrays.items():
            *parents, last = key.split(".")
            place = _find(held, ".".join(parents)) if parents else held
            place[int(last) if isinstance(place, list) else last] = array


def nbytes(tree: StateTree) -> int:
    return sum(array.nbytes for arrays in tree.values() for array in arrays.values())


def reset(optimizer: Any, entries: tuple[Entry, ...]) -> None:
    """Drops all per-parameter state; step, learning rate and the like stay.

    Raises:
        ValueError: where a parameter is called like one of those.
    """
    tree = roots(entries)
    for leaf in leaves(optimizer):
        own = {k: v for k, v in leaf.state.items() if isinstance(v, mx.array)}
        clash = sorted(tree & own.keys())
        if clash:
            raise ValueError(
                f"a parameter is called {clash[0]!r}, as a part of the state of "
                f"{type(leaf).__name__} is; rename it, or put it into a module"
            )
        for name in tree & leaf.state.keys():
            del leaf.state[name]
        leaf.state = leaf.state  # the same dict, which a compiled step may hold


def share_scalars(optimizer: Any, comm: Collectives) -> None:
    """Gives all ranks the root's step, learning rate and the like."""
    for leaf in leaves(optimizer):
        for name in sorted(leaf.state):
            if isinstance(leaf.state[name], mx.array):
                leaf.state[name] = comm.broadcast(leaf.state[name], 0)


def _described(tree: StateTree) -> dict[str, dict[str, list[Any]]]:
    return {
        path: {key: [dtype_name(a.dtype), *a.shape] for key, a in arrays.items()}
        for path, arrays in tree.items()
    }


def _everyones(tree: StateTree, comm: Collectives) -> list[Any]:
    described = json.dumps(_described(tree)).encode()
    return [json.loads(text) for text in comm.all_gather_bytes(described)]


def _from_rank(
    comm: Collectives, tree: StateTree, described: Any, path: str, rank: int
) -> Flat:
    arrays: Flat = {}
    for key, (dtype, *shape) in described[path].items():
        assert dtype in ITEM_SIZES, dtype
        own = (
            tree[path][key]
            if comm.rank == rank
            else mx.zeros(tuple(shape), getattr(mx, dtype))
        )
        arrays[key] = comm.broadcast(own, rank)
    return arrays


def share(tree: StateTree, comm: Collectives) -> StateTree:
    """The root's state on every rank; it may be empty on the others."""
    described = _everyones(tree, comm)[0]
    return {path: _from_rank(comm, tree, described, path, 0) for path in described}


def gather(tree: StateTree, plan: Plan, comm: Collectives) -> StateTree:
    """The full state on every rank, from the shard on each.

    Sends a rank's own state to the others, an array at a time.
    """
    if not plan.sharded:
        return tree
    described = _everyones(tree, comm)
    full: StateTree = {}
    for entry in plan.entries:
        holders = [r for r in range(plan.ranks) if entry.path in described[r]]
        parts = [
            _from_rank(comm, tree, described[rank], entry.path, rank)
            for rank in holders
        ]
        if parts:
            full[entry.path] = _joined(parts, entry, plan)
    return full


def _joined(parts: list[Flat], entry: Entry, plan: Plan) -> Flat:
    if plan.strategy == "tensors":
        return parts[0]
    joined: Flat = {}
    for key, first in parts[0].items():
        if first.ndim == 1 and sum(part[key].size for part in parts) == entry.size:
            whole = mx.concatenate([part[key] for part in parts])
            joined[key] = whole.reshape(entry.shape)
        else:  # one number for the whole tensor, the same on all
            joined[key] = first
    return joined


def cut(full: StateTree, plan: Plan, rank: int) -> StateTree:
    """This rank's shard of a full state."""
    shard: StateTree = {}
    for path, (start, stop) in plan.shard(rank).items():
        if path not in full:
            continue
        entry = plan.by_path[path]
        shard[path] = {
            key: array.reshape(-1)[start:stop]
            if plan.strategy == "elements" and tuple(array.shape) == entry.shape
            else array
            for key, array in full[path].items()
        }
    return shard


def misfit(wanted: StateTree, given: StateTree) -> str | None:
    """How a state differs from what the optimizer holds, or None where it fits."""
    for path, arrays in _described(wanted).items():
        found = _described({path: given[path]})[path] if path in given else {}
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


def as_mlx(optimizer: Any, full: StateTree) -> dict[str, Any]:
    """A full state in MLX's own layout, as the unwrapped optimizer would hold it."""
    inner = getattr(optimizer, "optimizers", None)
    if inner is not None:
        parts = zip(inner, optimizer.filters, strict=True)
        return {
            "states": [
                as_mlx(one, {p: a for p, a in full.items() if wants(p, None)})
                for one, wants in parts
            ]
        }
    keep = {k: v for k, v in optimizer.state.items() if isinstance(v, mx.array)}
    tree = {path: nested(arrays) for path, arrays in full.items()}
    return {**keep, **nested(tree)}


def from_mlx(optimizer: Any, state: Any, paths: Iterable[str]) -> StateTree:
    """The other way: a state in MLX's layout, flat, for the given paths."""
    found: StateTree = {}
    for path in paths:
        held = _find(_part_of(optimizer, state, path), path)
        if isinstance(held, dict):
            found[path] = _arrays(held)
    return found


def _part_of(optimizer: Any, state: Any, path: str) -> Any:
    inner = getattr(optimizer, "optimizers", None)
    if inner is None:
        return state
    for index, wants in enumerate(optimizer.filters):
        if wants(path, None):
            return _part_of(inner[index], state["states"][index], path)
    raise ValueError(f"no optimizer of the MultiOptimizer takes {path}")


def scalars(optimizer: Any, full: Any) -> list[dict[str, Array]]:
    """Step, learning rate and the like from a full state, for each leaf optimizer."""
    inner = getattr(optimizer, "optimizers", None)
    if inner is not None:
        pairs = zip(inner, full["states"], strict=True)
        return [part for one, held in pairs for part in scalars(one, held)]
    names = [k for k, v in optimizer.state.items() if isinstance(v, mx.array)]
    return [{name: full[name] for name in names}]


def write_scalars(optimizer: Any, values: list[dict[str, Array]]) -> None:
    for leaf, own in zip(leaves(optimizer), values, strict=True):
        leaf.state.update(own)
