"""Rank 0's replicated state and counts on all ranks, after a step that some lack."""

from __future__ import annotations

import json

import numpy as np

from ..arrays.types import Flat
from ..comm.collectives import Collectives
from ..layout.paths import KeyPath
from . import state
from .inner_optimizer import InnerOptimizer
from .resumable_state import ResumableState
from .share_weights import differing_paths
from .state_layout import StateLayout
from .state_values import is_number


def share_after_errors(resumable: ResumableState) -> None:
    """Take rank 0's counts, and where a step ended with an error its state as well.

    Called by all ranks. State that is replicated may be that of another step; sharded
    state has one owner. Sends a few bytes, and the arrays that differ.
    """
    comm, counters = resumable.world.control, resumable.counters()
    had_error = resumable.counts.ended is not None
    words = np.array([had_error, *counters.values()], np.uint64)
    every = comm.all_gather_words(words)
    resumable.put_counters(dict(zip(counters, map(int, every[0, 1:]), strict=True)))
    is_replicated = not resumable.layout.plan.sharded
    if comm.size > 1 and is_replicated and every[:, 0].any():
        _share_state(comm, resumable.inner, resumable.layout)


def _share_state(comm: Collectives, inner: InnerOptimizer, layout: StateLayout) -> None:
    tree = state.read(inner, layout.shard)
    flat: Flat = {}
    numbers: Flat = {}
    for path, values in tree.items():
        for key, value in values.items():
            (numbers if is_number(value) else flat)[KeyPath((*path, key))] = value
    for path in differing_paths(comm, flat):
        flat[path] = comm.broadcast(flat[path], 0)
    local = json.dumps(list(numbers.values())).encode()
    shared = json.loads(comm.all_gather_bytes(local)[0])
    flat.update(zip(numbers, shared, strict=True))
    for path, values in tree.items():
        for key in values:
            values[key] = flat[KeyPath((*path, key))]
    state.write(inner, tree)
