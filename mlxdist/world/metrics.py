"""Metrics of one rank as float64 numbers, and their mean in the types they came in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Complex, Number, Real

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from ..arrays.numpy_view import from_numpy
from ..arrays.trees import leaves_of, rebuild
from ..arrays.types import Array, Tree
from ..layout.paths import KeyPath

Leaf = object  # a number, a NumPy scalar or array, or an mx.array

_NUMBER_KINDS = "biufc"  # NumPy's kinds: bool, integers, floats, complex numbers


@dataclass(frozen=True)
class Metrics:
    """A tree of metrics, with its numbers laid end to end.

    Attributes:
        tree: as the user gave it.
        paths: of its leaves, sorted.
        values: of the leaves: float64 arrays, or complex128 ones.
    """

    tree: Tree
    paths: Sequence[KeyPath]
    values: Sequence[NDArray[np.float64]]

    @property
    def lines(self) -> list[str]:
        """Paths, shapes and kinds, which must be equal on all ranks."""
        return [
            f"{path or 'a number'}{list(value.shape) or ''}"
            + (" complex" if np.iscomplexobj(value) else "")
            for path, value in zip(self.paths, self.values, strict=True)
        ]

    @property
    def vector(self) -> NDArray[np.float64]:
        """All numbers; a complex one is two."""
        parts = [value.reshape(-1).view(np.float64) for value in self.values]
        return np.concatenate([np.zeros(0), *parts])

    def with_values(self, vector: NDArray[np.float64]) -> Tree:
        """Return the tree with the numbers of a vector that is laid out as `vector`."""
        leaves = leaves_of(self.tree)
        start = 0
        for path, value in zip(self.paths, self.values, strict=True):
            stop = start + value.size * value.itemsize // vector.itemsize
            mean = vector[start:stop].view(value.dtype).reshape(value.shape)
            leaves[path] = _in_type_of(leaves[path], mean)
            start = stop
        return rebuild(self.tree, leaves)


def read_metrics(tree: Tree) -> Metrics:
    """Read a tree of numbers and arrays. Evaluates the arrays.

    Raises:
        ValueError: on a leaf that is neither, with its path.
    """
    flat = sorted(leaves_of(tree).items(), key=lambda item: item[0])
    values = [_as_float64(path, leaf) for path, leaf in flat]
    return Metrics(tree, [path for path, _ in flat], values)


def _as_float64(path: KeyPath, leaf: Leaf) -> NDArray[np.float64]:
    """Return a leaf as a new float64 or complex128 array."""
    try:
        array = _as_numpy(leaf)
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        text = f"{path or 'the metric'} can't be read: {error}"
        raise ValueError(text) from error
    if array is None or array.dtype.kind not in _NUMBER_KINDS:
        dtype = "" if array is None else f" of {array.dtype}"
        raise ValueError(
            f"{path or 'the metric'} is a {type(leaf).__name__}{dtype}; it must be a "
            "number, or an array of numbers of MLX or NumPy"
        )
    wide = np.complex128 if array.dtype.kind == "c" else np.float64
    return np.array(array, wide, order="C")


def _as_numpy(leaf: Leaf) -> NDArray[np.generic] | None:
    if isinstance(leaf, mx.array):
        return np.array(leaf.astype(mx.float32) if leaf.dtype == mx.bfloat16 else leaf)
    if isinstance(leaf, np.ma.MaskedArray):
        raise ValueError(
            "its masked numbers have no mean; call filled() or compressed()"
        )
    if isinstance(leaf, np.ndarray | np.generic):
        return np.asarray(leaf)
    if isinstance(leaf, Complex) and not isinstance(leaf, Real):
        return np.array(complex(leaf))
    # float() gives a number's text too: only what counts as a number may be one.
    return np.array(float(leaf)) if isinstance(leaf, Number) else None  # type: ignore[arg-type]


def _in_type_of(leaf: Leaf, mean: NDArray[np.float64]) -> Array:
    """Return a mean in the type of the leaf: what `World.mean` documents."""
    if isinstance(leaf, np.ndarray):
        return mean
    if not isinstance(leaf, mx.array):
        return mean.item()
    if np.iscomplexobj(mean):
        return from_numpy(mean.astype(np.complex64))
    is_wide = leaf.dtype.size == 8 and mx.issubdtype(leaf.dtype, mx.floating)
    return mx.array(mean, leaf.dtype) if is_wide else from_numpy(mean)


def weighted_mean(
    rows: NDArray[np.float64], weights: Sequence[float]
) -> NDArray[np.float64]:
    """Return the weighted mean of rows, added in their order.

    A row of weight 0 is left out, even where it is nan.
    """
    total = np.zeros(rows.shape[1])
    with np.errstate(over="ignore", invalid="ignore"):
        for row, weight in zip(rows, weights, strict=True):
            if weight:
                total += weight * row
        return total / math.fsum(weights)
