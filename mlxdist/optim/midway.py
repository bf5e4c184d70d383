"""A checkpoint in the middle of a step's micro-batches.

What matters of the sums that the ranks hold is their sum, and of their weights too. It
is saved in shards, as state is, and one that resumes puts its shard between zeros.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

from ..arrays.types import Flat
from ..comm.agreement import agree, float_of, words_of
from ..layout.sharding import Plan
from .accumulation import sum_dtype
from .fused_step import cut
from .state import StateTree

# A float's bits in two counts.
_HIGH, _LOW = "accumulated_weight_high", "accumulated_weight_low"


def shard_of_sums(ours: Any) -> StateTree:
    """This rank's share of the sums over all ranks. Called by all of them."""
    comm, plan = ours.world.control, ours._require_plan()
    so_far = ours._accumulation
    if so_far.in_tree:
        raise ValueError(
            "reproducible=True can't save in the middle of a step's micro-batches: "
            f"{so_far.count} of them are added up. Save after the step's last update"
        )
    call = f"{ours._name}: saving in the middle of a step"
    agree(comm, call, so_far.count, list, problem=so_far.problem)
    own, weight = so_far.total(plan)
    words = np.array([words_of(weight)], np.uint64)
    every = comm.all_gather_words(words)[:, 0]
    ours._midway_weight = sum(float_of(int(word)) for word in every)
    shares = {p.entry.path: p for bucket in plan.pieces(comm.rank) for p in bucket}
    saved: StateTree = {}
    for entry in plan.entries:
        total = None
        for rank in range(comm.size):
            array = own[entry.path]
            if comm.rank != rank:
                array = mx.zeros(array.shape, array.dtype)
            sent = comm.broadcast(array, rank)
            total = sent if total is None else total + sent
        mx.eval(total)
        if entry.path in shares:
            share = cut(total, shares[entry.path], plan.strategy)
            saved[entry.path] = {"sum": share}
    return saved


def counters(ours: Any) -> dict[str, int]:
    """What else there is to save, the same on all ranks."""
    high, low = divmod(words_of(ours._midway_weight), 2**32)
    return {"accumulated": ours._accumulation.count, _HIGH: high, _LOW: low}


def like(plan: Plan, rank: int) -> StateTree:
    """Arrays like a rank's share, not evaluated."""
    return {
        p.entry.path: {
            "sum": mx.zeros(p.shape(plan.strategy), sum_dtype(p.entry.dtype))
        }
        for bucket in plan.pieces(rank)
        for p in bucket
    }


def resume(ours: Any, counters: dict[str, int], restored: Flat) -> None:
    """Goes on from a share: as if this rank had added up that much of the whole."""
    plan, rank = ours._require_plan(), ours.world.rank
    sums = {e.path: mx.zeros(e.size, sum_dtype(e.dtype)) for e in plan.entries}
    if plan.sharded or rank == 0:
        ranges = plan.shard(rank)
        for path, share in restored.items():
            start, stop = ranges[path]
            sums[path][start:stop] = share.reshape(-1)
    sums = {e.path: sums[e.path].reshape(e.shape) for e in plan.entries}
    mx.eval(sums)
    word = counters[_HIGH] * 2**32 + counters[_LOW]
    weight = float_of(word) if rank == 0 else 0.0
    ours._accumulation.resume(sums, weight, counters["accumulated"])
