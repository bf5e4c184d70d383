"""A mark in the state of a shard: whose it is.

A user who saves `optimizer.state` on each rank may load the file of another rank, or of
a run on another number of ranks. Where slices are equally long, nothing else
distinguishes them.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from .inner_optimizer import InnerOptimizer
from .state_layout import StateLayout
from .state_values import SHARD_KEY


def put_mark(inner: InnerOptimizer, layout: StateLayout) -> None:
    """Mark this rank's state, where each rank has another shard."""
    for leaf in inner.leaves:
        leaf.optimizer.state.pop(SHARD_KEY, None)
        if layout.plan.sharded and layout.plan.ranks > 1:
            numbers = np.array(_numbers(layout), np.uint64)
            leaf.optimizer.state[SHARD_KEY] = mx.array(numbers)


def mark_problem(inner: InnerOptimizer, layout: StateLayout) -> str | None:
    """Return whose shard the state is by its mark, or None if it is this rank's.

    A state without a mark, or whose mark was changed with the rest of it, is not
    recognized.
    """
    for leaf in inner.leaves:
        mark = leaf.optimizer.state.get(SHARD_KEY)
        if not isinstance(mark, mx.array) or mark.dtype != mx.uint64:
            continue
        numbers = [int(number) for number in np.array(mark).reshape(-1)]
        if len(numbers) == 3 and numbers[1] and numbers != _numbers(layout):
            rank, ranks, _ = numbers
            return f"it is the shard of rank {rank} of {ranks}, or of another plan"
    return None


def _numbers(layout: StateLayout) -> list[int]:
    return [layout.rank, layout.plan.ranks, layout.plan.fingerprint]
