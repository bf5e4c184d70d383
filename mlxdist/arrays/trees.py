"""MLX's parameter trees as flat paths, and back."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.nn import Module
from mlx.utils import tree_flatten, tree_map, tree_unflatten
from numpy.typing import NDArray

from ..layout.entries import Entry, in_order
from .numpy_view import raw
from .types import Array, Tree


def entries_of(tree: Tree) -> tuple[Entry, ...]:
    """The arrays of a tree as entries, sorted by path.

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
    """A dict's key "7" and a list's eighth place have one path, and MLX takes lists."""
    items = list(tree.items()) if isinstance(tree, dict) else []
    if isinstance(tree, list | tuple):
        items = list(enumerate(tree))
    for key, child in items:
        place = f"{path}.{key}" if path else str(key)
        if isinstance(tree, dict) and str(key).isdecimal():
            raise ValueError(
                f"{place}: the dict's key {key!r} is a number, which MLX reads as a "
                "place in a list; rename it, or use a list"
            )
        _refuse_digit_keys(child, place)


def trainable(parameters: Tree) -> Tree:
    """A module's trainable parameters; a tree as it is."""
    if isinstance(parameters, Module):
        return parameters.trainable_parameters()
    return parameters


def dtype_name(dtype: Any) -> str:
    """mx.float32 -> "float32"."""
    return str(dtype).rpartition(".")[2]


def rebuild(tree: Tree, leaves: Mapping[str, Array]) -> Tree:
    """The tree with other leaves, its dicts in the order they have."""
    ordered = iter([leaves[path] for path, _ in tree_flatten(tree)])
    return tree_map(lambda _: next(ordered), tree)


def nested(flat: Mapping[str, Any]) -> Tree:
    """`{"a.b": x}` -> `{"a": {"b": x}}`. Lists keep their places, gaps are `{}`."""
    return tree_unflatten(list(flat.items())) if flat else {}


def digest(tree: Tree) -> NDArray[np.uint64]:
    """The sha256 of a tree's paths, shapes, dtypes and bits, as four words."""
    arrays = tree.parameters() if isinstance(tree, Module) else tree
    flat = dict(tree_flatten(arrays))
    total = hashlib.sha256()
    for entry in entries_of(arrays):
        total.update(f"{entry}\n".encode())
        total.update(raw(flat[entry.path]).data)
    return np.frombuffer(total.digest(), np.uint64)
