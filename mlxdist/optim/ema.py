"""EMA weights: an exponential moving average of the parameters, held in shards.

After each step: average = decay * average + (1 - decay) * parameter, in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import mlx.core as mx
from mlx.nn import Module
from mlx.utils import tree_flatten

from ..arrays.tree_index import TreeIndex
from ..arrays.types import Array, Dtype
from ..comm.agreement import agree
from ..comm.wire import Whole, Wire
from .state import StateTree

KEY = "average"  # in the optimizer's state of a parameter


class EmaWeights(NamedTuple):
    """The averages' decay; None for no averages."""

    decay: float | None = None

    def initial(self, parameter: Array) -> Array:
        return parameter.astype(_dtype(parameter))

    def updated(
        self, stepped: Array, parameter: Array, state: dict[str, Array]
    ) -> Array:
        """Return the average after a step to `stepped`."""
        assert self.decay is not None
        wide = stepped.astype(_dtype(parameter))
        average = state.get(KEY, wide)
        return average + (1 - self.decay) * (wide - average)


def _dtype(parameter: Array) -> Dtype:
    return mx.float64 if parameter.dtype == mx.float64 else mx.float32


@contextmanager
def swapped_in(
    model: Module, shard: StateTree, wire: Wire, call: str
) -> Iterator[None]:
    """Replace a model's parameters by their averages, in the parameters' dtype.

    Each rank sends its share of the averages, as parameters travel.

    Args:
        shard: this rank's state.
        call: name of the call, for errors.

    Raises:
        MismatchError: on all ranks, where the model is not the one of `init`.
    """
    paths = dict(tree_flatten(model.trainable_parameters()))
    problem = None
    if paths.keys() != wire.plan.by_path.keys():
        problem = "the model has other parameters: call optimizer.init(model) again"
    agree(wire.comm, call, wire.plan.fingerprint, problem=problem)
    slots = TreeIndex(paths).slots(model)
    saved = [(container, key, container[key]) for container, key in slots.values()]
    try:
        for path, array in _whole(shard, wire):
            if path in slots:
                container, key = slots[path]
                container[key] = array
        yield
    finally:
        for container, key, array in saved:
            container[key] = array


def _whole(shard: StateTree, wire: Wire) -> Iterator[tuple[str, Array]]:
    """All ranks' averages by path, each evaluated before the next bucket is sent."""
    gather = wire.gather()
    for index, bucket in enumerate(wire.pieces):
        averages = [
            shard[piece.entry.path][KEY].astype(getattr(mx, piece.entry.dtype))
            for piece in bucket
        ]
        for whole in gather.push(index, wire.stepped_chunk(index, averages)):
            yield from _evaluated(whole)
    for whole in gather.rest():
        yield from _evaluated(whole)


def _evaluated(whole: Whole) -> Iterator[tuple[str, Array]]:
    mx.eval(whole.arrays)
    paths = (entry.path for entry in whole.bucket.entries)
    yield from zip(paths, whole.arrays, strict=True)
