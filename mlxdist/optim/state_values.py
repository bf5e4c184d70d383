"""Values of an optimizer's state: arrays, and Python numbers that are no arrays.

An optimizer of a user's own may count in Python numbers. Where only arrays can go, such
as into a checkpoint, a number becomes an array without dimensions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map

from ..arrays.numpy_view import from_numpy, raw
from ..arrays.trees import leaves_of
from ..arrays.types import Array, Tree
from ..layout.entries import ITEM_SIZES

# A key of the optimizer's state, like "step": see shard_mark.py.
SHARD_KEY = "mlxdist_shard"

_DOUBLE = mx.float64  # noqa: TID251  nothing is computed with it

Number = bool | int | float | str | None
Value = Array  # an mx.array, or a Number


def is_number(value: object) -> bool:
    """Return whether a value is kept as it is, and is no array."""
    return value is None or isinstance(value, bool | int | float | str)


def values_of(state: Tree) -> dict[str, Value]:
    """Return the arrays and numbers of a parameter's state by the text of its key."""
    return {
        key.text: value
        for key, value in leaves_of(state).items()
        if isinstance(value, mx.array) or is_number(value)
    }


def as_state(tree: Tree) -> Tree:
    """Return a user's state in containers of its own, with NumPy's arrays as MLX's."""
    return tree_map(_as_mlx, tree)


def _as_mlx(leaf: Value) -> Value:
    is_numpy = isinstance(leaf, np.ndarray | np.generic)
    return from_numpy(leaf) if is_numpy and leaf.dtype.name in ITEM_SIZES else leaf


def as_array(value: Value) -> Array:
    """Return an array for a value: bool, int64 or float64 without dimensions.

    Raises:
        ValueError: on text and None, which no array can hold.
    """
    if isinstance(value, bool):
        return mx.array(value)
    if isinstance(value, int):
        return mx.array(value, mx.int64)
    if isinstance(value, float):
        return mx.array(value, _DOUBLE)
    if is_number(value):
        raise ValueError(f"it is {value!r}; use a number or an mx.array instead")
    return value


def like(value: Value, array: Array) -> Value:
    """Return an array as a number, where the `value` that it replaces is one.

    It gets the type that was saved: an int may become a float. A None is no value yet,
    and becomes what `as_array` makes an array of.
    """
    if isinstance(value, bool | int | float) or (
        value is None and may_be_number(array)
    ):
        return array.item()
    return array


def may_be_number(array: Array) -> bool:
    """Return whether `as_array` may have made an array of a number."""
    return not array.shape and array.dtype in (mx.bool_, mx.int64, _DOUBLE)


def digest(values: Mapping[str, Value]) -> bytes:
    """Return the sha256 of names and values, in the order of the names."""
    checksum = hashlib.sha256()
    for name in sorted(values):
        value = values[name]
        kind = type(value) if is_number(value) else [value.dtype, value.shape]
        checksum.update(f"{name} {kind}\n".encode())
        checksum.update(repr(value).encode() if is_number(value) else raw(value).data)
    return checksum.digest()
