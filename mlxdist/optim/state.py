"""The optimizer's state by path: read, written, and in MLX's own layout.

MLX's state holds 'step', 'learning_rate' and the like, and a tree in which each
parameter has a dict of arrays. Here that tree is flat: `{path: {key: value}}`, where a
key is the text of a path in the parameter's dict.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable

import mlx.core as mx

from ..arrays.trees import dict_at, leaves_of, make_slot, put, unflatten
from ..arrays.types import Array, Named, Tree
from ..comm.collectives import Collectives
from ..layout.paths import KeyPath
from ..layout.sharding import Plan
from .inner_optimizer import InnerOptimizer, Leaf
from .state_values import Value, is_number, like, values_of

StateTree = dict[KeyPath, dict[str, Value]]


def dicts(inner: InnerOptimizer, paths: Iterable[KeyPath]) -> dict[KeyPath, Tree]:
    """Return the optimizer's own dict of each of the given paths that has one."""
    states = {p: dict_at(inner.owner(p).optimizer.state, p) for p in paths}
    return {path: state for path, state in states.items() if state is not None}


def read(inner: InnerOptimizer, paths: Iterable[KeyPath]) -> StateTree:
    """Return the state of the given paths; nothing is evaluated."""
    return {path: values_of(state) for path, state in dicts(inner, paths).items()}


def write(inner: InnerOptimizer, tree: StateTree) -> None:
    """Replace values that `read` returned, or add some."""
    for path, state in dicts(inner, tree).items():
        for key, value in tree[path].items():
            key_path = KeyPath.parse(key)
            make_slot(state, key_path)
            put(state, key_path, value)


def replace(inner: InnerOptimizer, tree: StateTree) -> None:
    """Replace all per-parameter state. The scalars stay."""
    for leaf in inner.leaves:
        scalars = leaf.scalars()
        kept = {k: v for k, v in leaf.optimizer.state.items() if k in scalars}
        states = {p: _nested_keys(tree[p]) for p in leaf.paths if p in tree}
        leaf.optimizer.state = {**kept, **inner.nested(states)}
        leaf.optimizer._initialized = True


def nbytes(tree: StateTree) -> int:
    """Return the bytes of all arrays."""
    return sum(
        value.nbytes
        for values in tree.values()
        for value in values.values()
        if not is_number(value)
    )


def reset(inner: InnerOptimizer, plan: Plan) -> None:
    """Drop all per-parameter state; step, learning rate and the like stay.

    Raises:
        ValueError: where a parameter has the name of one of those.
    """
    tree = {path[0] for path in plan.by_path if path}
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
    numbers: list[dict[str, Value]] = []
    for leaf in inner.leaves:
        state, names = leaf.optimizer.state, leaf.scalars()
        numbers.append({name: state[name] for name in names if is_number(state[name])})
        for name in names:
            if name not in numbers[-1]:
                state[name] = comm.broadcast(state[name], 0)
    texts = comm.all_gather_bytes(json.dumps(numbers).encode())
    write_scalars(inner, json.loads(texts[0]))


def scalar_like(leaf: Leaf, name: str, array: Array) -> Value:
    """Return an array as a leaf's step, learning rate or the like, of its dtype.

    Raises:
        ValueError, OverflowError: if its number is none of that dtype.
    """
    before = leaf.optimizer.state[name]
    if isinstance(before, mx.array) and before.dtype != array.dtype:
        return mx.array(array.item(), before.dtype)  # a number was saved
    return like(before, array)


def surplus(inner: InnerOptimizer, paths: Collection[KeyPath]) -> list[str]:
    """Return as text what in the optimizer's state can't be taken.

    That is what belongs to none of the paths, and what is neither array nor number.
    """
    leaves = [
        item
        for leaf in inner.leaves
        for item in leaves_of(leaf.optimizer.state).items()
    ]
    unknown, names = [], []
    for name, value in leaves:
        if not any(KeyPath(name[:count]) in paths for count in range(1, len(name))):
            names.append(name)
        elif not isinstance(value, mx.array) and not is_number(value):
            kind = type(value).__name__
            unknown.append(f"{name}, which is of type {kind}: make it an mx.array")
    flat = [name.dotted for name in names if len(name) == 1 and "." in name.dotted]
    return [
        *unknown,
        *(f"{name}, which is of another model" for name in names if len(name) > 1),
        *(
            f"{name!r} at its root: nest it with mlx.utils.tree_unflatten"
            for name in flat
        ),
    ]


def scalar_names(inner: InnerOptimizer) -> list[str]:
    """Return names and shapes of step, learning rate and the like, as text."""
    return [
        f"{leaf.at}{name} is {value.dtype}{list(value.shape)}"
        for leaf in inner.leaves
        for name, value in leaf.scalars().items()
    ]


def missing_scalars(inner: InnerOptimizer) -> list[str]:
    """Return the names without which MLX's optimizer can't step."""
    return [
        name
        for leaf in inner.leaves
        for name in ("step", *leaf.optimizer._schedulers)
        if name not in leaf.optimizer.state
    ]


# -- MLX's own layout


def to_mlx(inner: InnerOptimizer, full: StateTree) -> Tree:
    """Return a full state in MLX's layout, as the unwrapped optimizer would hold it."""
    parts = {}
    for leaf in inner.leaves:
        states = {p: _nested_keys(full[p]) for p in leaf.paths if p in full}
        scalars = {name: leaf.optimizer.state[name] for name in leaf.scalars()}
        parts[leaf.at] = {**scalars, **inner.nested(states)}
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
    """Return the given paths' values of a state in MLX's layout."""
    tree: StateTree = {}
    for path in paths:
        values = dict_at(_part_of(inner.owner(path), state), path)
        if values is not None:
            tree[path] = values_of(values)
    return tree


def scalars_from_mlx(inner: InnerOptimizer, state: Tree) -> list[Named]:
    """Return step, learning rate and the like of each leaf, of a full state."""
    return [
        {name: _part_of(leaf, state)[name] for name in leaf.scalars()}
        for leaf in inner.leaves
    ]


def scalars_of(inner: InnerOptimizer) -> list[Named]:
    """Return step, learning rate and the like of each leaf, as they are."""
    return [
        {name: leaf.optimizer.state[name] for name in leaf.scalars()}
        for leaf in inner.leaves
    ]


def write_scalars(inner: InnerOptimizer, values: list[Named]) -> None:
    for leaf, scalars in zip(inner.leaves, values, strict=True):
        leaf.optimizer.state.update(scalars)


def _part_of(leaf: Leaf, state: Tree) -> Tree:
    for part in filter(None, leaf.at.split(".")):
        state = state[int(part)] if isinstance(state, list | tuple) else state[part]
    return state
