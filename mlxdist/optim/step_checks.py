"""Checks before a step: of this rank's gradients, then of all ranks together."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import mlx.core as mx
from mlx.utils import tree_map

from ..arrays.numpy_view import raw
from ..arrays.tree_index import TreeIndex
from ..arrays.trees import leaves_of
from ..arrays.types import Flat, Tree
from ..comm.agreement import MismatchError, agree, no_lines, weight_problem
from ..comm.reduction import Weights
from ..layout.entries import fingerprint
from ..layout.sharding import Plan
from ..world.world import World
from .accumulation import MicroBatches
from .inner_optimizer import InnerOptimizer

_INIT_REMEDY = (
    ". After freezing or adding layers call optimizer.init(model) again; it keeps the "
    "state of what stays"
)
_CAST_REMEDY = (
    ". Cast it, as in g.astype(p.dtype); to add up micro-batches in float32 use "
    "accumulate=; after model.set_dtype() call optimizer.init(model) again"
)
_DRIFT_REMEDY = (
    "If parameters or state differ, a rank changed them outside of update(), or had a "
    "memory error: start again from a checkpoint, or from rank 0 with init(model)."
)


@dataclass
class Batch:
    """The arguments of one update, by path.

    Attributes:
        gradients: this rank's; empty for a step of the schedules alone.
        parameters: those that the gradients are for.
        problem: why the gradients can't be used, or None.
        index: of the gradients' tree, where it is that of earlier steps.
    """

    gradients: Flat
    parameters: Flat
    weight: float | None
    problem: str | None = None
    index: TreeIndex | None = None


def read_batch(
    index: TreeIndex | None, gradients: Tree, parameters: Tree, weight: float | None
) -> Batch:
    """Flatten the arguments of an update. Raises nothing: `problem` says what is wrong.

    Args:
        index: of the gradients of earlier steps, which saves the search.
    """
    if index is not None:
        try:
            found = index.flat(gradients), index.flat(parameters)
            return Batch(*found, weight, index=index)
        except (LookupError, TypeError):
            pass  # another tree: search it for what is wrong, if anything is
    tree, problem = matching(gradients, parameters)
    return Batch(leaves_of(gradients), leaves_of(tree), weight, problem)


def matching(gradients: Tree, parameters: Tree) -> tuple[Tree, str | None]:
    """Return the parameters that gradients are for, or why there are none."""
    try:
        return tree_map(lambda _, parameter: parameter, gradients, parameters), None
    except (KeyError, IndexError, TypeError) as error:
        return {}, (
            "the gradients have another structure than the parameters: "
            f"{type(error).__name__} {error}"
        )


def gradient_problem(plan: Plan, gradients: Flat) -> str | None:
    """Return how gradients differ from the plan's parameters, or None.

    No gradients at all are valid: such a step moves the schedules alone.
    """
    if not gradients:
        return None
    for entry in plan.entries:
        array = gradients.get(entry.path)
        if array is None:
            return f"there is no gradient for {entry}{_INIT_REMEDY}"
        if not isinstance(array, mx.array):
            kind = type(array).__name__
            return f"the gradient of {entry.path} is a {kind}, wanted an mx.array"
        shape = tuple(array.shape)
        if shape != entry.shape or array.dtype != getattr(mx, entry.dtype):
            remedy = _CAST_REMEDY if shape == entry.shape else _INIT_REMEDY
            return (
                f"the gradient of {entry.path} is {array.dtype}{list(shape)}, "
                f"wanted {entry.dtype}{list(entry.shape)}{remedy}"
            )
    if len(gradients) > len(plan.entries):
        extra = min(gradients.keys() - plan.by_path.keys())
        return f"there is a gradient for {extra}, new since init(){_INIT_REMEDY}"
    return None


def batch_problem(plan: Plan, batch: Batch) -> str | None:
    """Return why a batch doesn't fit the plan, or None; a plan of nothing fits all."""
    problem = gradient_problem(plan, batch.gradients) if plan.entries else None
    return problem or batch.problem


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
        lines = [f"{steps} steps done", *self._checksums(batch, steps)]
        lines += self.inner.scalar_lines()
        if batch.gradients and micro.active:
            lines.append(f"{micro.count} micro-batches before")
        weight, problem = _total(self.world, self.plan, batch, micro)
        return agree_on_weights(
            self.world,
            call_name(self.name, batch),
            fingerprint(lines) ^ self.plan.fingerprint,
            lambda: [*lines, *self.plan.lines],
            weight=weight,
            problem=problem,
        )

    def _checksums(self, batch: Batch, steps: int) -> list[str]:
        if not self.check_every or steps % self.check_every:
            return []
        arrays = dict(batch.parameters)
        if not self.plan.sharded:
            arrays |= leaves_of(self.inner.optimizer.state)
        return checksums(arrays)


@dataclass
class SingleRank:
    """A world of one: refuses what is wrong, and compares nothing, as MLX."""

    world: World
    name: str
    plan: Plan

    def agree(self, batch: Batch, micro: MicroBatches, steps: int) -> Weights:
        weight, problem = _total(self.world, self.plan, batch, micro)
        call = call_name(self.name, batch)
        return agree_on_weights(
            self.world, call, 0, no_lines, weight=weight, problem=problem
        )


@dataclass
class WhileTracing:
    """Compares once, when `mx.compile` first traces.

    A rank that traces again, for a batch of another shape, does so alone and can't ask
    the others. A weight that is traced is known only when the compiled step runs.
    """

    world: World
    name: str
    plan: Plan
    _agreed: bool = field(default=False, init=False)

    def agree(self, batch: Batch, micro: MicroBatches, steps: int) -> Weights:
        problem = _problem(self.world, self.plan, batch)
        retraced, self._agreed = self._agreed, True
        lines = [f"{steps} steps done"]
        if retraced:
            if problem:
                raise ValueError(problem)
            return traced_weights(self.world, batch.weight)
        agree(
            self.world.control,
            call_name(self.name, batch),
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
    """Why this rank can't take the step: its gradients, or an earlier failed save."""
    if world.background_errors:
        return world.background_errors.pop()
    return batch_problem(plan, batch)


def _total(
    world: World, plan: Plan, batch: Batch, micro: MicroBatches
) -> tuple[float | None, str | None]:
    """The weight of all micro-batches of the step, and why it can't be taken."""
    problem = _problem(world, plan, batch)
    if not (batch.gradients and micro.active):
        return batch.weight, problem
    problem = micro.problem_with(batch.weight, world.size) or problem
    return micro.weight_with(batch.weight), problem


def call_name(name: str, batch: Batch) -> str:
    """Return what an update is called in errors and records."""
    return f"{name}.update" + ("" if batch.gradients else " without gradients")


def agree_on_weights(
    world: World,
    call: str,
    detail: int,
    describe: Callable[[], list[str]],
    *,
    weight: float | None,
    problem: str | None,
) -> Weights:
    """Compare a call over the ranks, and return all ranks' weights.

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
        remedy=_DRIFT_REMEDY,
    )
    if not math.fsum(every):
        raise MismatchError(f"{call} refused: every rank has weight 0")
    return Weights.known(world.rank, every)


def traced_weights(world: World, weight: float | None) -> Weights:
    """Return the weights of a step that `mx.compile` traces."""
    if weight is not None:
        return Weights(mx.array(weight), None, None)
    return Weights.known(world.rank, [1.0] * world.size)
