"""A step that leaves parameters out: they, and their state, stay as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import mlx.core as mx

from ..arrays.concat import Chunk
from ..arrays.dtypes import dtype_of
from ..arrays.types import Array, Flat
from ..comm.gather import Slot
from ..comm.wire import Wire
from ..layout.entries import Entry
from ..layout.paths import KeyPath
from . import state
from .batch import Batch, missing_entries
from .inner_optimizer import InnerOptimizer
from .local_shard import Stepped
from .local_update import LocalUpdate, ShardStep
from .pipeline import Pipeline


def leave_out(
    run: Pipeline, inner: InnerOptimizer, batch: Batch, gradients: Flat
) -> Pipeline:
    """Return a pipeline for a step that leaves parameters out, if it does.

    Args:
        gradients: this rank's; gets zeros, which are sent, for those that are missing.
    """
    missing = missing_entries(run.wire.plan, batch)
    if not missing:
        return run
    gradients |= _zeros(missing)
    return replace(run, local=PartialUpdate(run.local, inner, run.wire, missing))


class PartialUpdate:
    """A local update that puts the state of some parameters back.

    Args:
        update: of all parameters. It gets zeros for those that are left out, and their
            new values are not used.
        missing: the parameters that are left out.
    """

    def __init__(
        self,
        update: LocalUpdate,
        inner: InnerOptimizer,
        wire: Wire,
        missing: Sequence[Entry],
    ):
        self._update, self._inner, self._wire = update, inner, wire
        self._missing = missing

    @property
    def is_compiled(self) -> bool:
        return self._update.is_compiled

    def begin(self, parameters: Flat, scale: Array | None) -> ShardStep:
        parameters |= _zeros(self._missing)
        step = self._update.begin(parameters, scale)
        return _PartialStep(step, self._inner, self._wire, self._missing)

    def unchanged(self, index: int, parameters: Flat) -> Stepped:
        return self._update.unchanged(index, parameters | _zeros(self._missing))


class _PartialStep:
    def __init__(
        self,
        step: ShardStep,
        inner: InnerOptimizer,
        wire: Wire,
        missing: Sequence[Entry],
    ):
        self._step, self._inner, self._wire = step, inner, wire
        states = state.dicts(inner, [entry.path for entry in missing])
        self._before = {path: dict(values) for path, values in states.items()}

    def add(self, index: int, mean: Chunk, slot: Slot | None = None) -> Stepped:
        # Parameters that are left out may not be overwritten, so none is.
        stepped = self._step.add(index, mean)
        paths = (p.entry.path for done, _ in stepped for p in self._wire.pieces[done])
        self._put_back([path for path in paths if path in self._before])
        return stepped

    def undo(self) -> bool:
        return self._step.undo()

    def unpublished(self) -> list[Array]:
        return self._step.unpublished()

    def _put_back(self, paths: list[KeyPath]) -> None:
        for path, values in state.dicts(self._inner, paths).items():
            values.clear()
            values.update(self._before[path])


def _zeros(entries: Sequence[Entry]) -> Flat:
    return {e.path: mx.zeros(e.shape, dtype_of(e.dtype)) for e in entries}
