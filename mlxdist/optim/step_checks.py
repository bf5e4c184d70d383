"""Agreement before a step: what the ranks compare, and where one can refuse it."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import mlx.core as mx

from ..arrays.numpy_view import raw
from ..arrays.trees import leaves_of
from ..arrays.types import Flat
from ..comm.agreement import MismatchError, agree, error_text, weight_problem
from ..comm.reduction import Weights
from ..layout.entries import fingerprint
from ..layout.sharding import Plan
from ..layout.wording import counted
from ..world.world import World
from .accumulation import MicroBatches
from .batch import Batch, batch_problem, missing_lines, missing_problem
from .inner_optimizer import InnerOptimizer
from .user_warning import warn_user

_DRIFT_REMEDY = (
    "Set hyperparameters to the same values on all ranks. If parameters or state "
    "differ, a rank changed them outside of update(), or had a memory error: start "
    "again from a checkpoint, or from rank 0 with init(model)."
)


def checksums(arrays: Flat) -> list[str]:
    """Return the crc32 of each array's bits as text: finds any one flipped bit."""
    return [
        f"{path} with crc32 {zlib.crc32(raw(arrays[path]).data):08x}"
        for path in sorted(arrays)
        if isinstance(arrays[path], mx.array)
    ]


class StepAgreement(Protocol):
    """The one place where a step can be refused, on all ranks or on none."""

    def agree(self, batch: Batch, micro: MicroBatches, steps: int) -> Weights:
        """Return all ranks' weights.

        Args:
            steps: how many were taken before.

        Raises:
            MismatchError: on all ranks, where they differ, one of them has a problem,
                or none has any weight.
        """


@dataclass
class EveryStep:
    """Compares each step over the ranks, and checksums now and then.

    Args:
        name: of the optimizer, for errors.
        check_every: steps between comparisons of checksums; 0 for none.
    """

    world: World
    name: str
    plan: Plan
    inner: InnerOptimizer
    check_every: int

    def agree(self, batch: Batch, micro: MicroBatches, steps: int) -> Weights:
        weight, problem = _total(self.world, self.plan, batch, micro)
        lines: list[str] = []
        try:
            lines = self._lines(batch, micro, steps)
        except Exception as error:  # the values of a user's arrays and objects
            problem = problem or error_text(error)
        return agree_on_weights(
            self.world,
            call_name(self.name, batch),
            fingerprint(lines) ^ self.plan.fingerprint,
            lambda: [*lines, *batch.notes, *self.plan.lines],
            weight=weight,
            problem=problem,
            elsewhere=micro.weight_elsewhere if batch.gradients else 0.0,
        )

    def _lines(self, batch: Batch, micro: MicroBatches, steps: int) -> list[str]:
        lines = [f"{counted(steps, 'step')} done", *self._checksums(batch, steps)]
        lines += self.inner.hyperparameters.changes()
        lines += [*self.inner.scalar_lines(), *missing_lines(self.plan, batch)]
        if batch.gradients and micro.active:
            lines.append(f"{micro.count} micro-batches before")
        return lines

    def _checksums(self, batch: Batch, steps: int) -> list[str]:
        if not self.check_every or steps % self.check_every:
            return []
        arrays = dict(batch.parameters)
        if not self.plan.sharded:
            arrays |= leaves_of(self.inner.optimizer.state)
        return checksums(arrays)


@dataclass
class SingleRank:
    """A world of one: refuses what is wrong, and compares and waits for nothing."""

    world: World
    name: str
    plan: Plan

    def agree(self, batch: Batch, micro: MicroBatches, steps: int) -> Weights:
        weight, problem = _total(self.world, self.plan, batch, micro)
        call = call_name(self.name, batch)
        problem = problem or weight_problem(weight)
        if problem is not None:
            raise MismatchError(
                f"{call} refused, nothing was changed:\n  rank 0: {problem}"
            )
        if weight == 0 and not (batch.gradients and micro.weight_elsewhere):
            raise MismatchError(f"{call} refused: every rank has weight 0")
        return Weights.known(0, [1.0 if weight is None else float(weight)])


@dataclass
class WhileTracing:
    """Compares once, when `mx.compile` first traces.

    A rank that traces again, for a batch of another shape, does so alone and can't ask
    the others. A weight that is traced is known only when the compiled step runs.
    """

    world: World
    name: str
    plan: Plan
    _agreed: set[str] = field(default_factory=set, init=False)

    def agree(self, batch: Batch, micro: MicroBatches, steps: int) -> Weights:
        problem = _problem(self.world, self.plan, batch)
        call = call_name(self.name, batch)
        lines = [f"{counted(steps, 'step')} done", *missing_lines(self.plan, batch)]
        if call in self._agreed:
            if problem:
                raise ValueError(problem)
            return traced_weights(self.world, batch.weight)
        self._agreed.add(call)
        agree(
            self.world.control,
            call,
            fingerprint(lines) ^ self.plan.fingerprint,
            lambda: [*lines, *self.plan.lines],
            number=1.0,
            problem=problem,
            remedy=_DRIFT_REMEDY,
        )
        return traced_weights(self.world, batch.weight)


@dataclass
class Unchecked:
    """Checks nothing, for measurements of what the checks cost. All weights are 1."""

    world: World

    def agree(self, batch: Batch, micro: MicroBatches, steps: int) -> Weights:
        return Weights.known(self.world.rank, [1.0] * self.world.size)


def _problem(world: World, plan: Plan, batch: Batch) -> str | None:
    """Why this rank can't take the step: its gradients, or an earlier error."""
    return earlier_problem(world) or batch_problem(plan, batch)


def _total(
    world: World, plan: Plan, batch: Batch, micro: MicroBatches
) -> tuple[float | None, str | None]:
    """The weight of all micro-batches of the step, and why it can't be taken."""
    problem = _problem(world, plan, batch)
    if not (batch.gradients and micro.active):
        return batch.weight, problem
    problem = problem or missing_problem(plan, batch)
    problem = micro.problem_with(batch.weight, world.size) or problem
    return micro.weight_with(batch.weight), problem


def call_name(name: str, batch: Batch) -> str:
    """Return what a step is called in errors and records."""
    return f"{name}.{batch.call}" + ("" if batch.gradients else " without gradients")


def earlier_problem(world: World) -> str | None:
    """Return an error of this rank that the others don't know of, once.

    Such as that of a save in the background.
    """
    return world.background_errors.pop() if world.background_errors else None


def agree_on_weights(
    world: World,
    call: str,
    detail: int,
    describe: Callable[[], list[str]],
    *,
    weight: float | None,
    problem: str | None,
    remedy: str = _DRIFT_REMEDY,
    elsewhere: float = 0.0,
    meanwhile: Callable[[], None] | None = None,
) -> Weights:
    """Compare a call over the ranks, and return all ranks' weights.

    Args: as of `agree`, and
        elsewhere: weight of other gradients in the same mean.

    Raises:
        MismatchError: on all ranks, where they differ, or none has any weight.
    """
    problem = problem or weight_problem(weight)
    number = 1.0 if weight is None or problem else float(weight)
    every = agree(
        world.control,
        call,
        detail,
        describe,
        number=number,
        problem=problem,
        remedy=remedy,
        meanwhile=meanwhile,
    )
    if not math.fsum(every) + elsewhere:
        raise MismatchError(f"{call} refused: every rank has weight 0")
    return Weights.known(world.rank, every)


def warn_without_weight(world: World, weight: float | None) -> None:
    """Warn on rank 0 where ranks have more examples than others, and no weight.

    Python shows a warning once for each line of the user's.
    """
    if weight is None and world.has_uneven_shares and world.is_root:
        warn_user(
            "the ranks have different numbers of examples in this batch, the last one "
            "of the sampler's epoch, and no weight was given: the mean gradient counts "
            "each rank alike. Pass weight=len(batch)."
        )


def traced_weights(world: World, weight: float | None) -> Weights:
    """Return the weights of a step that `mx.compile` traces."""
    if weight is not None:
        return Weights(mx.array(weight), None, None)
    return Weights.known(world.rank, [1.0] * world.size)
