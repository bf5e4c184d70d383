"""Lends a model the averages of its parameters, which the ranks hold in shards."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx.nn import Module
from mlx.utils import tree_flatten

from ..arrays.tree_index import Structure
from ..arrays.types import Array, Pieces
from ..comm.agreement import agree
from ..comm.wire import Wire
from . import state
from .masters import AVERAGE

Kept = list[tuple[Any, Any, Array]]  # container, key, and what was there


def lend(ours: Any, model: Module, wire: Wire) -> Kept:
    """Puts averages in the place of a model's parameters, in their dtype.

    Args:
        ours: a DistributedOptimizer that keeps averages.

    Raises:
        MismatchError: on all ranks, where the model is another one than at `init`.
    """
    paths = dict(tree_flatten(model.trainable_parameters()))
    problem = None
    if paths.keys() != wire.plan.by_path.keys():
        problem = "the model has other parameters: call optimizer.init(model) again"
    call = f"{ours._name}.averaged"
    agree(ours.world.control, call, wire.plan.fingerprint, list, problem=problem)
    places = Structure(paths).places(model)
    kept: Kept = [(box, key, box[key]) for box, key in places.values()]
    own = state.read(ours._inner, wire.plan.shard(wire.comm.rank))
    for bucket, arrays in wire.gather(_pieces(own, wire), traced=False):
        mx.eval(arrays)
        for entry, array in zip(bucket.entries, arrays, strict=True):
            if entry.path in places:
                box, key = places[entry.path]
                box[key] = array
    return kept


def give_back(kept: Kept) -> None:
    for box, key, array in kept:
        box[key] = array


def _pieces(own: state.StateTree, wire: Wire) -> Any:
    for index, bucket in enumerate(wire.pieces):
        arrays: Pieces = [
            own[piece.entry.path][AVERAGE].astype(getattr(mx, piece.entry.dtype))
            for piece in bucket
        ]
        yield index, arrays
