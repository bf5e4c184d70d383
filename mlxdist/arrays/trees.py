"""MLX's parameter trees as flat paths, and back."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence

import mlx.core as mx
import numpy as np
from mlx.nn import Module
from mlx.utils import tree_flatten, tree_map, tree_unflatten
from numpy.typing import NDArray

from ..layout.entries import Entry, in_order
from ..layout.sharding import Piece, Plan, Strategy
from .numpy_view import raw
from .types import Array, Flat, Tree

Key = str | int
FLOATS = ("float32", "float16", "bfloat16", "float64")


def entries_of(tree: Tree) -> tuple[Entry, ...]:
    """Return the arrays of a tree as entries, sorted by path.

    Raises:
        ValueError: on a leaf that is not an array, with its path.
    """
    _refuse_digit_keys(tree, "")
    entries = []
    for path, leaf in tree_flatten(tree):
        if not isinstance(leaf, mx.array):
            raise ValueError(
                f"{path or 'the tree'} is a {type(leaf).__name__}, not an mx.array; "
                "leave it out of the tree or make it an array"
            )
        entries.append(Entry(path, tuple(leaf.shape), dtype_name(leaf.dtype)))
    return in_order(entries)


def _refuse_digit_keys(tree: Tree, path: str) -> None:
    """Refuse the dict key "7", whose path is that of a list's eighth item to MLX."""
    for key, child in _items(tree):
        child_path = f"{path}.{key}" if path else str(key)
        if isinstance(tree, dict) and str(key).isdecimal():
            raise ValueError(
                f"{child_path}: the dict's key {key!r} is a number, which MLX reads as "
                "an index into a list; rename it, or use a list"
            )
        _refuse_digit_keys(child, child_path)


def _items(tree: Tree) -> Iterator[tuple[Key, Tree]]:
    if isinstance(tree, dict):
        yield from tree.items()
    elif isinstance(tree, list | tuple):
        yield from enumerate(tree)


def trainable(parameters: Tree) -> Tree:
    """Return a module's trainable parameters; a tree as it is."""
    if isinstance(parameters, Module):
        return parameters.trainable_parameters()
    return parameters


def all_parameters(model: Tree) -> Flat:
    """Return all arrays of a model, frozen ones and buffers too, sorted by path."""
    tree = model.parameters() if isinstance(model, Module) else model
    flat = dict(tree_flatten(tree))
    return {entry.path: flat[entry.path] for entry in entries_of(tree)}


def dtype_name(dtype: object) -> str:
    """mx.float32 -> "float32"."""
    return str(dtype).rpartition(".")[2]


def dtype_problem(entries: Sequence[Entry]) -> str | None:
    """Return which entry's gradients can't be averaged for its dtype, or None."""
    for entry in entries:
        if entry.dtype not in FLOATS:
            return (
                f"{entry} can't be trained: its dtype is none of {', '.join(FLOATS)}; "
                "freeze it"
            )
    return None


def rebuild(tree: Tree, leaves: Mapping[str, Array]) -> Tree:
    """Return the tree with other leaves, its dicts in the order they have."""
    ordered = iter([leaves[path] for path, _ in tree_flatten(tree)])
    return tree_map(lambda _: next(ordered), tree)


def nested(flat: Mapping[str, Array]) -> Tree:
    """`{"a.b": x}` -> `{"a": {"b": x}}`. List indices stay, gaps become `{}`."""
    return tree_unflatten(list(flat.items())) if flat else {}


def slot(tree: Tree, path: str) -> tuple[Tree, Key]:
    """Return the container and key of the leaf at a dotted path.

    Raises:
        LookupError, TypeError or ValueError: where the tree has no such place.
    """
    *parents, last = path.split(".")
    for part in parents:
        tree = tree[int(part)] if isinstance(tree, list | tuple) else tree[part]
    return tree, int(last) if isinstance(tree, list | tuple) else last


def put(tree: Tree, path: str, leaf: Array) -> None:
    """Replace the leaf at a dotted path, in place."""
    container, key = slot(tree, path)
    container[key] = leaf


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
    arrays = tree.parameters() if isinstance(tree, Module) else tree
    flat = dict(tree_flatten(arrays))
    checksum = hashlib.sha256()
    for entry in entries_of(arrays):
        checksum.update(f"{entry}\n".encode())
        checksum.update(raw(flat[entry.path]).data)
    return np.frombuffer(checksum.digest(), np.uint64)
