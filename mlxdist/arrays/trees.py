"""MLX's parameter trees as flat paths, and back."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from itertools import pairwise

import mlx.core as mx
import numpy as np
from mlx.nn import Module
from mlx.utils import tree_map
from numpy.typing import NDArray

from ..layout.entries import Entry, in_order
from ..layout.paths import Key, KeyPath
from ..layout.sharding import Piece, Plan, Strategy
from .dtypes import dtype_name
from .numpy_view import raw
from .types import Array, Flat, Tree

FLOATS = ("float32", "float16", "bfloat16", "float64")


def leaves_of(tree: Tree) -> Flat:
    """Return a tree's leaves by path, in the order of MLX's `tree_flatten`."""
    leaves: Flat = {}
    _collect(tree, (), leaves)
    return leaves


def _collect(tree: Tree, path: tuple[Key, ...], leaves: Flat) -> None:
    if isinstance(tree, dict):
        for key, child in tree.items():
            _collect(child, (*path, key), leaves)
    elif isinstance(tree, list | tuple):
        for index, child in enumerate(tree):
            _collect(child, (*path, index), leaves)
    else:
        leaves[KeyPath(path)] = tree


def entries_of(tree: Tree) -> tuple[Entry, ...]:
    """Return the arrays of a tree as entries, sorted by path.

    Raises:
        ValueError: on a leaf that is not an array, with its path.
    """
    return _entries(leaves_of(tree))


def _entries(leaves: Flat) -> tuple[Entry, ...]:
    entries = []
    for path, leaf in leaves.items():
        if not isinstance(leaf, mx.array):
            raise ValueError(
                f"{path or 'the tree'} is a {type(leaf).__name__}, not an mx.array; "
                "leave it out of the tree or make it an array"
            )
        entries.append(Entry(path, tuple(leaf.shape), dtype_name(leaf.dtype)))
    return in_order(entries)


def trainable(parameters: Tree) -> Tree:
    """Return a module's trainable parameters; a tree as it is."""
    if isinstance(parameters, Module):
        return parameters.trainable_parameters()
    return parameters


def all_parameters(model: Tree) -> Flat:
    """Return all arrays of a model, frozen ones and buffers too, sorted by path."""
    return {entry.path: array for entry, array in _arrays_by_entry(model)}


def _arrays_by_entry(model: Tree) -> list[tuple[Entry, Array]]:
    """Return all arrays of a module or a tree with their entries, sorted by path."""
    leaves = leaves_of(model.parameters() if isinstance(model, Module) else model)
    return [(entry, leaves[entry.path]) for entry in _entries(leaves)]


def dtype_problem(entries: Sequence[Entry]) -> str | None:
    """Return which entry's gradients can't be averaged for its dtype, or None."""
    for entry in entries:
        if entry.dtype not in FLOATS:
            return (
                f"{entry} can't be trained: its dtype is none of {', '.join(FLOATS)}; "
                "freeze it"
            )
    return None


def rebuild(tree: Tree, leaves: Mapping[KeyPath, Array]) -> Tree:
    """Return the tree with other leaves, without a change to the order of its dicts."""
    ordered = iter([leaves[path] for path in leaves_of(tree)])
    return tree_map(lambda _: next(ordered), tree)


def structure(tree: Tree) -> Tree:
    """Return the containers of a tree alone, with None for each leaf."""
    return tree_map(lambda _: None, tree)


_ABSENT = object()


def nested(leaves: Mapping[KeyPath, Tree], like: Tree) -> Tree:
    """Return a tree of the structure of `like` with these leaves alone.

    A child without any of them is left out of a dict, and is `{}` in a list or tuple,
    as in the trees of MLX. Containers that are empty in `like` stay.
    """
    tree = _nested(leaves, like, ())
    return {} if tree is _ABSENT else tree


def _nested(
    leaves: Mapping[KeyPath, Tree], like: Tree, path: tuple[Key, ...]
) -> Tree | object:
    if isinstance(like, dict):
        pairs = ((k, _nested(leaves, like[k], (*path, k))) for k in like)
        children = {k: child for k, child in pairs if child is not _ABSENT}
        return children if children or not like else _ABSENT
    if isinstance(like, list | tuple):
        items = [_nested(leaves, c, (*path, i)) for i, c in enumerate(like)]
        if items and all(item is _ABSENT for item in items):
            return _ABSENT
        return sequence_like(like, [{} if c is _ABSENT else c for c in items])
    return leaves.get(KeyPath(path), _ABSENT)


def sequence_like(like: Tree, items: list[Tree]) -> Tree:
    """Return a list, tuple or named tuple of the type of `like`."""
    kind = type(like)
    return kind(*items) if hasattr(like, "_fields") else kind(items)


def unflatten(leaves: Mapping[KeyPath, Tree]) -> Tree:
    """Return the tree of dicts and lists that has these leaves alone."""
    if KeyPath() in leaves:
        return leaves[KeyPath()]
    children: dict[Key, dict[KeyPath, Tree]] = {}
    for path, leaf in leaves.items():
        children.setdefault(path[0], {})[KeyPath(path[1:])] = leaf
    indices = [key for key in children if isinstance(key, int) and key >= 0]
    if indices and len(indices) == len(children):
        return [unflatten(children.get(i, {})) for i in range(1 + max(indices))]
    return {key: unflatten(child) for key, child in children.items()}


def slot(tree: Tree, path: Sequence[Key]) -> tuple[Tree, Key]:
    """Return the container and key of the leaf at a path.

    Raises:
        LookupError, TypeError or ValueError: if the tree has no such path.
    """
    *parents, last = path
    for key in parents:
        tree = tree[_key_in(tree, key)]
    return tree, _key_in(tree, last)


def dict_at(tree: Tree, path: Sequence[Key]) -> Tree | None:
    """Return the dict at a path, such as a parameter's part of a state, or None."""
    try:
        container, key = slot(tree, path)
        child = container[key]
    except (LookupError, TypeError, ValueError):
        return None
    return child if isinstance(child, dict) else None


def _key_in(tree: Tree, key: Key) -> Key:
    """Return a key as an index where the tree is a list.

    `tree_unflatten` makes lists of dicts whose keys are digits.
    """
    if isinstance(tree, list | tuple) and isinstance(key, str):
        return int(key)
    return key


def put(tree: Tree, path: Sequence[Key], leaf: Array) -> None:
    """Replace the leaf at a path, in place; a tuple is replaced with its leaf.

    Raises:
        LookupError, TypeError or ValueError: if the tree has no such path, or the leaf
            is not `is_replaceable`.
    """
    container, key = slot(tree, path)
    if not isinstance(container, tuple):
        container[key] = leaf
        return
    items = [leaf if i == key else item for i, item in enumerate(container)]
    put(tree, path[:-1], sequence_like(container, items))


def is_replaceable(tree: Tree, path: KeyPath) -> bool:
    """Return whether `put` can replace a leaf: not all containers of it are tuples."""
    containers: list[Tree] = []
    for key in path:
        containers.append(tree)
        tree = tree[key]
    return not all(isinstance(container, tuple) for container in containers)


def make_slot(tree: Tree, path: Sequence[Key]) -> None:
    """Add the dicts and lists that lead to a path, where a tree lacks them."""
    for key, following in pairwise([*path, None]):
        if isinstance(tree, list) and isinstance(key, int):
            tree.extend([None] * (key + 1 - len(tree)))
            child = tree[key]
        else:
            child = tree.get(key) if isinstance(tree, dict) else tree[key]
        if child is None and following is not None:
            child = tree[key] = [] if isinstance(following, int) else {}
        tree = child


def cut(array: Array, piece: Piece, strategy: Strategy) -> Array:
    """Return a piece of a whole array: 1-D where the plan cuts elements."""
    if strategy != "elements":
        return array
    return array.reshape(-1)[piece.start : piece.stop]


def cut_all(parameters: Flat, pieces: Sequence[tuple[Piece, ...]], plan: Plan) -> Flat:
    """Return a rank's shard of arrays that every rank has whole."""
    return {
        piece.entry.path: cut(parameters[piece.entry.path], piece, plan.strategy)
        for bucket in pieces
        for piece in bucket
    }


def digest(tree: Tree) -> NDArray[np.uint64]:
    """Return the sha256 of a tree's paths, shapes, dtypes and bits, as four words."""
    checksum = hashlib.sha256()
    for entry, array in _arrays_by_entry(tree):
        checksum.update(f"{entry}\n".encode())
        checksum.update(raw(array).data)
    return np.frombuffer(checksum.digest(), np.uint64)
