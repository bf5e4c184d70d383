"""The global norm and clipping, over flat trees."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from .agreement import float_of, words_of
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


def scaled_norm(tree: Flat, comm: Collectives, *, sharded: bool) -> Array:
    """The global norm where squares overflow float32; not finite only where `tree` is.

    Slower: it finds the largest element first. Evaluates the tree.
    """
    peaks = [mx.abs(a).max().astype(mx.float32) for a in tree.values() if a.size]
    peak = float(mx.max(mx.stack(peaks))) if peaks else 0.0
    if sharded:
        words = np.array([words_of(peak)], np.uint64)
        every = comm.all_gather_words(words)[:, 0]
        peak = float(np.max([float_of(int(word)) for word in every]))
    if not 0 < peak < float("inf"):
        return mx.array(peak)
    small = {path: array.astype(mx.float32) / peak for path, array in tree.items()}
    return peak * global_norm(small, comm, sharded=sharded)


def clip(tree: Flat, norm: Array, max_norm: float) -> Flat:
    """Scales a tree down so that its global norm is at most `max_norm`.

    As `mlx.optimizers.clip_grad_norm` does it, given the norm.
    """
    scale = mx.minimum(max_norm / (norm + 1e-6), 1.0)
    return {path: (array * scale).astype(array.dtype) for path, array in tree.items()}
