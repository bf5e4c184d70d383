"""One attempt at a step that all ranks have agreed to: taken whole, or ended.

Each rank's part of an exchange is awaited by the others. So an error on one rank does
not end its part: it goes through the collectives that are left, with zeros for
gradients that it can't have, and with its parameters as they are.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from ..arrays import device
from ..arrays.concat import Chunk
from ..arrays.types import Array, Flat
from ..comm.agreement import OnAllRanks
from ..comm.deferred_gather import DeferredGather
from ..comm.gather import Gather, Slot, Whole
from ..comm.reduction import Weights
from ..comm.wire import Reduction
from . import grad_norm
from .batch import TreeIndexes
from .local_gradients import LocalGradients
from .local_shard import Stepped
from .local_update import ShardStep
from .pipeline import Pipeline
from .resumable_state import StepCounts
from .targets import Target

_TORN = (
    ": some parameters are of that step, the others of the one before. Load a "
    "checkpoint with mlxdist.load_checkpoint(), or call optimizer.init(model) on all "
    "ranks, which gives them rank 0's parameters"
)


class Attempt:
    """Exchanges gradients, steps this rank's shard, and publishes the parameters.

    Args:
        run: how each phase works.
        index: of the gradients' and parameters' trees.
        gradients: this rank's, or the sums of its micro-batches.
        weights: theirs on all ranks.

    Attributes:
        has_handed_on: whether new parameters may have left this rank.
    """

    def __init__(
        self,
        run: Pipeline,
        index: TreeIndexes,
        target: Target,
        gradients: LocalGradients,
        weights: Weights,
    ):
        self._run, self._index, self._target = run, index, target
        self.gradients, self.weights = gradients, weights
        self._means: Reduction | None = None
        self._norm: grad_norm.Norm | None = None
        self._gather: Gather | DeferredGather | None = None
        self._shard: ShardStep | None = None
        self._taken: set[int] = set()  # buckets whose mean was taken
        self._queued: deque[tuple[int, Chunk]] = deque()  # stepped, not handed on
        self.has_handed_on = False

    @property
    def has_peers(self) -> bool:
        return self._run.wire.has_peers

    def exchange(self) -> grad_norm.Norm:
        """Average the gradients. A bucket leaves as soon as its own are evaluated.

        Returns:
            Their norm: one number for all ranks, or none where nothing needs it.
        """
        if self._means is None:
            local = self.gradients
            self._means = self._run.wire.reduce(
                local.unsent, self.weights, local.earlier
            )
        self.weights = self._means.weights
        kept = self.gradients.kept
        self._norm = self._run.norm.measure(self._means, kept, self.weights)
        return self._norm

    def update(self, parameters: Flat, scale: Array | None) -> None:
        """Step, gather and publish, bucket by bucket."""
        assert self._means is not None
        self.gradients.kept.clear()
        shard = self._shard = self._run.local.begin(parameters, scale)
        self._gather = self._run.wire.gather()
        for index in self._run.wire.order:
            self._hand_on(shard.add(index, self._take(index), self._slot(index)))
        self._finish()
        self._run.evaluate(shard.unpublished())

    def fault(self) -> str | None:
        """What is not finite on this rank, after `exchange`; None for nothing.

        Gradients that were dropped are not there to be looked at, but their means are.
        """
        gradients, wire = self.gradients, self._run.wire
        if gradients.kept:
            return grad_norm.first_fault(gradients.kept) if self.weights.local else None
        assert self._means is not None
        means = {
            piece.entry.path: array
            for bucket, chunk in zip(wire.pieces, self._means.chunks(), strict=True)
            for piece, array in zip(bucket, chunk.pieces(), strict=True)
        }
        faults = []
        if gradients.loss is not None and not math.isfinite(gradients.loss.item()):
            faults.append(f"its loss is {gradients.loss.item()}")
        fault = grad_norm.first_fault(means)
        if fault is not None:
            faults.append(f"of the means that it has, {fault}")
        return "; ".join(faults) or None

    def undo(self) -> bool:
        """After an error: put back the state of what was not handed on.

        Returns:
            Whether parameters and state are as they were before the step.
        """
        is_undone = self._shard is None or self._shard.undo()
        return is_undone and not self.has_handed_on

    def end_exchange(self) -> grad_norm.Norm:
        """After an error: exchange what is left, zeros where gradients can't be had."""
        self._run.wire.comm.settle()
        zeros = self.gradients.use_zeros(self._run.wire.plan.entries)
        if self._means is not None:
            self._means.replace_gradients(zeros)
        return self.exchange() if self._norm is None else self._norm

    def end_update(self) -> None:
        """After an error and `end_exchange`: hand on parameters as they are.

        Those of other ranks are published, so that all ranks have the same ones.
        """
        self._gather = self._gather or self._run.wire.gather()
        self._queued.clear()
        parameters = self._index.parameters.flat(self._target.parameters)
        for index in self._run.wire.order:
            if index in self._gather.started:
                continue
            if index not in self._taken:
                self._take(index)
            self._hand_on(self._run.local.unchanged(index, parameters))
        self._finish()

    def _take(self, index: int) -> Chunk:
        assert self._means is not None
        mean = self._means.take(index)
        mean.is_reusable = mean.is_reusable or self.gradients.is_reusable
        self._taken.add(index)
        return mean

    def _hand_on(self, stepped: Stepped) -> None:
        assert self._gather is not None
        self.has_handed_on = self.has_handed_on or bool(stepped)
        for index, chunk in stepped:
            if index not in self._gather.started:  # and not before the error
                queued = self._run.wire.queue_stepped(index, chunk)
                self._queued.append((index, queued))
                self._push(leave=device.buckets_ahead())

    def _push(self, *, leave: int) -> None:
        """Hand on buckets that are queued, but for the last ones."""
        assert self._gather is not None
        while len(self._queued) > leave:
            index, chunk = self._queued.popleft()
            self._publish(self._gather.push(index, chunk, self._slot(index)))

    def _slot(self, index: int) -> Slot | None:
        """Where a bucket's parameter is, if it has one, which may be overwritten."""
        entries = self._run.wire.plan.buckets[index].entries
        if len(entries) > 1:
            return None
        return self._target.slot(self._index.parameters, entries[0].path)

    def _finish(self) -> None:
        assert self._gather is not None
        self._push(leave=0)
        self._publish(self._gather.rest())

    def _publish(self, buckets: list[Whole]) -> None:
        for whole in buckets:
            self._run.finish(whole.arrays)
            self._target.publish(self._index.parameters, whole)


def end_attempt(
    attempt: Attempt,
    counts: StepCounts,
    error: BaseException,
    skip: Callable[[grad_norm.Norm], None],
) -> None:
    """End a step after an error, so that other ranks don't wait for this one.

    Args:
        counts: gets what is wrong then.
        skip: what all ranks do where gradients are not finite.
    """
    counts.ended = error_line(counts, error)
    if not attempt.undo():
        counts.torn = f"{counts.ended}{_TORN}"
    if not attempt.has_peers:
        return
    counts.broken = f"{counts.ended}, and its exchanges can't be ended: restart the job"
    with suppress(Exception):  # the first error is the one to report
        norm = attempt.end_exchange()
        if norm.is_finite:
            attempt.end_update()
        else:
            with suppress(OnAllRanks):
                skip(norm)
        counts.broken = None


def error_line(counts: StepCounts, error: BaseException) -> str:
    """Return which step ended with an error, for the other ranks."""
    return f"step {counts.steps + 1} ended with {_text(error)}"


def _text(error: BaseException) -> str:
    kind = type(error).__name__
    try:
        return f"{kind}: {error}"
    except Exception:  # of a user's own class
        return f"{kind}, which can't be shown as text"
