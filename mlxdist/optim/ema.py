"""EMA weights: an exponential moving average of the parameters, held in shards.

After each step: average = decay * average + (1 - decay) * parameter, in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import mlx.core as mx
from mlx.nn import Module

from ..arrays.dtypes import dtype_of
from ..arrays.tree_index import TreeIndex
from ..arrays.trees import leaves_of
from ..arrays.types import Array, Dtype, Flat, Named, Tree
from ..comm.agreement import agree
from ..comm.collectives import Collectives
from ..comm.gather import Whole
from ..comm.wire import Wire
from ..layout.paths import Key, KeyPath
from .state import StateTree

KEY = "average"  # in the optimizer's state of a parameter


class EmaWeights(NamedTuple):
    """The averages' decay; None for no averages."""

    decay: float | None = None

    def initial(self, parameter: Array) -> Array:
        return parameter.astype(_dtype(parameter))

    def updated(self, stepped: Array, parameter: Array, state: Named) -> Array:
        """Return the average after a step to `stepped`."""
        assert self.decay is not None
        wide = stepped.astype(_dtype(parameter))
        average = state.get(KEY, wide)
        return average + (1 - self.decay) * (wide - average)


def _dtype(parameter: Array) -> Dtype:
    return mx.float64 if parameter.dtype == mx.float64 else mx.float32


class EmaSwap:
    """Swaps a model's parameters for their averages, for the time of an evaluation."""

    def __init__(self, ema: EmaWeights):
        self._ema = ema
        self._in_place = False

    def refuse_in_place(self, action: str) -> None:
        """Raise ValueError while a model has its EMA weights in place."""
        problem = self.problem_in_place(action)
        if problem is not None:
            raise ValueError(problem)

    def problem_in_place(self, action: str) -> str | None:
        """Return why an action must wait while a model has its EMA weights in place."""
        if not self._in_place:
            return None
        return (
            f"the model has its EMA weights in place: {action} after the `with "
            "optimizer.averaged(model)` block"
        )

    @contextmanager
    def swapped_in(
        self, model: Module, shard: StateTree, wire: Wire, call: str, comm: Collectives
    ) -> Iterator[None]:
        """Replace a model's parameters by their averages, in the parameters' dtype.

        Each rank sends its share of the averages, as parameters are sent.

        Args:
            shard: this rank's state.
            call: name of the call, for errors.
            comm: the transport on which ranks compare calls.

        Raises:
            ValueError: without averages, or where they are in place already.
            MismatchError: on all ranks, where the model is not the one of `init`.
        """
        if self._ema.decay is None:
            raise ValueError("there are no EMA weights: pass ema_decay=0.999")
        self.refuse_in_place("swap them in again")
        slots = _slots(model, wire, call, comm)
        saved = [(container, key, container[key]) for container, key in slots.values()]
        self._in_place = True
        try:
            for path, array in _whole(shard, wire):
                if path in slots:
                    container, key = slots[path]
                    container[key] = array
            yield
        finally:
            for container, key, array in saved:
                container[key] = array
            self._in_place = False


def _slots(
    model: Module, wire: Wire, call: str, comm: Collectives
) -> dict[KeyPath, tuple[Tree, Key]]:
    """Return where the model's parameters are; MismatchError if it has others."""
    paths: Flat = {}
    problem = None
    if isinstance(model, Module):
        paths = leaves_of(model.trainable_parameters())
    if paths.keys() != wire.plan.by_path.keys():
        problem = (
            f"found a {type(model).__name__} with other parameters than at init(): "
            "pass the model, or call optimizer.init(model) again"
        )
    agree(comm, call, wire.plan.fingerprint, problem=problem)
    return TreeIndex(paths).slots(model)


def _whole(shard: StateTree, wire: Wire) -> Iterator[tuple[KeyPath, Array]]:
    """All ranks' averages by path, each evaluated before the next bucket is sent."""
    gather = wire.gather()
    for index in wire.order:
        averages = [
            shard[piece.entry.path][KEY].astype(dtype_of(piece.entry.dtype))
            for piece in wire.pieces[index]
        ]
        for whole in gather.push(index, wire.stepped_chunk(index, averages)):
            yield from _evaluated(whole)
    for whole in gather.rest():
        yield from _evaluated(whole)


def _evaluated(whole: Whole) -> Iterator[tuple[KeyPath, Array]]:
    mx.eval(whole.arrays)
    paths = (entry.path for entry in whole.bucket.entries)
    yield from zip(paths, whole.arrays, strict=True)
