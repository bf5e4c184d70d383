"""The global norm and clipping, over the arrays of a shard."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from ..arrays.numpy_view import raw
from ..arrays.types import Array
from .agreement import float_of, words_of
from .collectives import Collectives
from .exchange import sum_of_squares


def squared_norm(arrays: Sequence[Array], *, traced: bool = False) -> Array:
    """The sum of squares of all elements, a float32 scalar; 0 for no arrays.

    16-bit numbers are squared in float32, where they neither overflow nor vanish.
    """
    total, known = mx.array(0.0, mx.float32), 0.0
    on_cpu = not traced and mx.default_device() == mx.cpu
    for array in arrays:
        if on_cpu and array.dtype == mx.float32:  # in the cache, without temporaries
            known += sum_of_squares(raw(array, np.float32))
        elif array.size:
            total = total + array.astype(mx.float32).square().sum()
    return total + known


def global_norm(
    arrays: Sequence[Array],
    comm: Collectives,
    *,
    parts: bool,
    squares: float | None = None,
    traced: bool = False,
) -> Array:
    """The norm of arrays that each rank has whole, or of the parts of all ranks.

    `squares` is their sum, where it is known.
    """
    own = mx.array(squares or 0.0)
    if squares is None:
        own = squared_norm(arrays, traced=traced)
    return mx.sqrt(comm.sum_scalar(own) if parts else own)


def scaled_norm(arrays: Sequence[Array], comm: Collectives, *, parts: bool) -> Array:
    """The norm where squares overflow float32; not finite only where an array is.

    Slower: it finds the largest element first. Evaluates the arrays.
    """
    peaks = [mx.abs(a).max().astype(mx.float32) for a in arrays if a.size]
    peak = float(mx.max(mx.stack(peaks))) if peaks else 0.0
    if parts:
        words = np.array([words_of(peak)], np.uint64)
        every = comm.all_gather_words(words)[:, 0]
        peak = float(np.max([float_of(int(word)) for word in every]))
    if not 0 < peak < float("inf"):
        return mx.array(peak)
    small = [array.astype(mx.float32) / peak for array in arrays]
    return peak * global_norm(small, comm, parts=parts)


def clip_scale(norm: Array, max_norm: float) -> Array:
    """What brings the global norm down to at most `max_norm`.

    As `mlx.optimizers.clip_grad_norm` has it, given the norm.
    """
    return mx.minimum(max_norm / (norm + 1e-6), 1.0)
