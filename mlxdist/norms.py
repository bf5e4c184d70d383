"""The global norm and clipping, over flat trees."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from .collectives import Array, Collectives
from .trees import Flat


def squared_norm(tree: Flat) -> Array:
    """The sum of squares of all elements, a float32 scalar; 0 for an empty tree.

    16-bit numbers are squared in float32, where they neither overflow nor vanish.
    """
    total = mx.array(0.0, mx.float32)
    for array in tree.values():
        if array.size:
            total = total + array.astype(mx.float32).square().sum()
    return total


def global_norm(tree: Flat, comm: Collectives, *, sharded: bool) -> Array:
    """The norm of a tree that is whole on each rank, or of the shards of all ranks."""
    squares = squared_norm(tree)
    return mx.sqrt(comm.sum_scalar(squares) if sharded else squares)


def clip(tree: Flat, norm: Array, max_norm: float) -> Flat:
    """Scales a tree down so that its global norm is at most `max_norm`.

    As `mlx.optimizers.clip_grad_norm` does it, given the norm.
    """
    scale = mx.minimum(max_norm / (norm + 1e-6), 1.0)
    return {path: (array * scale).astype(array.dtype) for path, array in tree.items()}


def check_max_norm(max_norm: Any) -> None:
    if max_norm is not None and not max_norm >= 0:
        raise ValueError(f"max_norm is {max_norm}; it must be zero or more, or None")
