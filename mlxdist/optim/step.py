"""The distributed step: average gradients, clip, update this rank's shard, gather."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import mlx.core as mx

from ..arrays import device
from ..arrays.types import Array, Flat, Tree
from ..comm.agreement import MismatchError, OnAllRanks
from ..comm.reduction import Weights
from ..world.world import World
from . import grad_norm, setup
from .accumulation import MicroBatches
from .attempt import Attempt, end_attempt
from .batch import (
    Batch,
    TreeIndexes,
    batch_problem,
    matching,
    missing_problem,
    read_batch,
)
from .grad_norm import NonFiniteError, Norm
from .identical_gradients import warn_if_identical
from .inner_optimizer import InnerOptimizer
from .loss_scale import make_loss_scale
from .managed_state import NEW
from .options import Options
from .partial_update import leave_out
from .pipeline import Pipeline, Pipelines
from .resumable_state import ResumableState, StepCounts
from .share_state import share_after_errors
from .step_checks import call_name
from .targets import Target


class DistributedStep:
    """Takes the steps of one optimizer, and holds what changes from step to step.

    Args:
        initialize: called with the parameters, at a first step without `init`.

    Attributes:
        is_planned: whether `pipelines` are those of a model's parameters.
        layout: of this rank's state.
        index: of the gradients' and the parameters' trees.
        norm: of the last mean gradients, where it was measured outside of mx.compile.
        weight: this rank's in the last step.
    """

    def __init__(
        self,
        world: World,
        inner: InnerOptimizer,
        options: Options,
        initialize: Callable[[Tree], None],
    ):
        self._world = world
        self._inner, self._options = inner, options
        self._initialize = initialize
        self.micro_batches = MicroBatches(
            options.accumulate, pairwise=options.reproducible
        )
        self.loss_scale = make_loss_scale(options.loss_scale)
        self.counts = StepCounts()
        self.layout = setup.empty_layout(world, options)
        plan = self.layout.plan
        self.pipelines = Pipelines(world, NEW, plan, inner, options, compiled=False)
        self.is_planned = False
        self.index: TreeIndexes | None = None
        self.norm: Array | None = None
        self.weight: float = 1.0
        self._gradients_compared = False

    def use(self, made: setup.Initialized) -> None:
        """Run the steps that follow under a new plan."""
        self.pipelines, self.layout = made.pipelines, made.layout
        self.is_planned, self.index = True, None
        share_after_errors(self.resumable_state())
        self._inner.hyperparameters.remember()

    def require_pipelines(self) -> Pipelines:
        """Return the pipelines of the model's plan; ValueError before `init`."""
        if not self.is_planned:
            raise ValueError("call optimizer.init(model) first")
        return self.pipelines

    def resumable_state(self) -> ResumableState:
        """Return what a checkpoint reads and replaces; ValueError before `init`."""
        self.require_pipelines()
        return ResumableState(
            self._world,
            self.layout,
            self._inner,
            self.counts,
            self.loss_scale,
            self.micro_batches,
        )

    def require_norm(self) -> Array:
        """Return the last step's norm; ValueError where it was not measured."""
        if self._options.max_norm is None:
            raise ValueError(
                "grad_norm is measured with max_norm only; max_norm=math.inf measures "
                "without clipping"
            )
        if self.norm is None:
            raise ValueError(
                "there is no grad_norm yet: nothing was updated, or inside mx.compile"
            )
        return self.norm

    def take(self, gradients: Tree, target: Target, weight: float | None) -> None:
        """Average the gradients over the ranks and take a step, phase by phase."""
        self.counts.refuse_broken()
        batch = read_batch(self.index, gradients, target.parameters, weight)
        batch.problem = self.counts.torn or batch.problem
        run = self._pipeline_for(batch, gradients, target)
        if batch.gradients and self.micro_batches.expects_more:
            self._accumulate(batch)
            return
        recorder, name = self._world.recorder, call_name(self.pipelines.name, batch)
        with recorder.call(name, self.counts.steps + 1), run.scope():
            # 1. Agree: here a step is refused, on all ranks or on none.
            run, weights = self._agree(run, batch)
            scalars = [leaf.scalars() for leaf in self._inner.leaves]
            try:
                if batch.gradients:
                    self._step(run, batch, weights, gradients, target)
                else:
                    self._inner.apply_gradients({}, {})
                    run.evaluate(self._inner.scalars())
            except BaseException:
                if self.counts.torn is None:
                    self._inner.restore_scalars(scalars)
                raise
            finally:
                self._inner.hyperparameters.remember()

    def _step(
        self,
        run: Pipeline,
        batch: Batch,
        weights: Weights,
        gradients: Tree,
        target: Target,
    ) -> None:
        """Take the step that all ranks have agreed to, or end it on an error."""
        self.index = batch.index or TreeIndexes.of(
            self.pipelines.plan, batch, gradients
        )
        sums, weights = self._sums(batch, weights)
        if run is self.pipelines.eager:
            self._warn_once(sums, weights, weighted=batch.weight is not None)
        part = leave_out(run, self._inner, batch, sums)
        attempt = Attempt(part, self.index, target, sums, weights)
        try:
            is_taken = self._phases(attempt, batch)
        except OnAllRanks:
            raise
        except BaseException as error:
            if run is self.pipelines.eager:
                skip = partial(self._skip_or_raise, attempt)
                end_attempt(attempt, self.counts, error, skip)
            raise
        self.counts.ended = None
        if is_taken:
            self.counts.steps += 1
            self.loss_scale.stepped()

    def _phases(self, attempt: Attempt, batch: Batch) -> bool:
        """Return whether the step was taken, and not skipped."""
        recorder = self._world.recorder
        # 2. Exchange gradients, and 3. measure their norm.
        recorder.phase("gradient exchange")
        norm = attempt.exchange()
        if not norm.is_finite:
            self._skip_or_raise(attempt, norm)
            return False
        # 4. Local step of this rank's shard, 5. gather, 6. publish: by bucket.
        recorder.phase("optimizer and parameter exchange")
        attempt.update(batch.parameters, self._scale(norm))
        return True

    def _pipeline_for(self, batch: Batch, gradients: Tree, target: Target) -> Pipeline:
        """Choose how to run a step; initialize at the first one."""
        first = self._first_gradients(batch.gradients) or self._inner.scalars()
        try:
            eager = device.start_evaluation(first)
        except RuntimeError as error:  # of the user's computation, or out of memory
            if self._world.size == 1:
                raise
            eager = True
            batch.problem = f"the gradients can't be evaluated: {error}"
        if not self.is_planned and batch.gradients and batch.problem is None:
            self._initialize(matching(gradients, target.parameters)[0])
        if not eager:
            micro = self.micro_batches
            return self.pipelines.traced(accumulates=micro.in_no_sync or micro.active)
        return self.pipelines.eager

    def _first_gradients(self, gradients: Flat) -> list[Array]:
        """The gradients that are sent first, those of the last layers.

        Only those: MLX blocks the caller once its queue of pending work is full.
        """
        plan = self.pipelines.plan
        if plan.buckets and plan.by_path.keys() == gradients.keys():
            return [gradients[entry.path] for entry in plan.buckets[0].entries]
        return list(gradients.values())[-1:]

    def _agree(self, run: Pipeline, batch: Batch) -> tuple[Pipeline, Weights]:
        """Return the pipeline for the present hyperparameters, and all weights."""
        eager = run is self.pipelines.eager
        if eager:
            batch.notes = [self.counts.ended] if self.counts.ended else []
            self._inner.hyperparameters.look()
            batch.problem = batch.problem or self._inner.wrapping.problem()
        try:
            weights = run.agreement.agree(batch, self.micro_batches, self.counts.steps)
        except MismatchError:
            self.micro_batches.drop()
            raise
        self.weight = weights.local
        if eager:
            run = self.pipelines.with_changes(
                changed=self._inner.hyperparameters.have_changed
            )
        return run, weights

    def _warn_once(self, sums: Flat, weights: Weights, *, weighted: bool) -> None:
        """At the first update, warn where all ranks have the same gradients."""
        if self._world.size > 1 and not self._gradients_compared:
            self._gradients_compared = warn_if_identical(
                self._world, sums, weights, weighted=weighted
            )

    def _accumulate(self, batch: Batch) -> None:
        """Add a micro-batch that is not the step's last. Nothing is sent."""
        plan = self.pipelines.plan
        problem = batch_problem(plan, batch) or missing_problem(plan, batch)
        self.micro_batches.add(batch.gradients, batch.weight, problem)
        if self.micro_batches.problem and self._world.size == 1:
            problem = self.micro_batches.problem
            self.micro_batches.drop()
            raise MismatchError(f"{problem}. The step begins anew.")

    def _sums(self, batch: Batch, weights: Weights) -> tuple[Flat, Weights]:
        """This rank's gradients and all weights, or the sums of its micro-batches."""
        if not self.micro_batches.active:
            return batch.gradients, weights
        assert weights.every is not None, "not inside mx.compile"
        of_sums = Weights.of_sums(weights.every, pairwise=self.micro_batches.pairwise)
        sums = self.micro_batches.finish(batch.gradients, batch.weight)
        batch.gradients.clear()
        if self._world.size == 1:
            return {
                path: array / of_sums.total for path, array in sums.items()
            }, of_sums
        return sums, of_sums

    def _scale(self, norm: Norm) -> Array | None:
        """The factor on mean gradients that unscales and clips them."""
        max_norm, value, scale = self._options.max_norm, norm.value, None
        if self._options.loss_scale is not None:
            scale = mx.array(1 / self.loss_scale.value)
            value = None if value is None else value * scale
        if max_norm is not None and value is not None:
            self.norm = None if norm.is_traced else value
            clip = grad_norm.clip_scale(value, max_norm)
            scale = clip if scale is None else clip * scale
        return scale

    def _skip_or_raise(self, attempt: Attempt, norm: Norm) -> None:
        self.norm = None if self._options.max_norm is None else norm.value
        if not self.loss_scale.overflowed():
            step = self.counts.steps + 1
            text = grad_norm.fault_text(
                self._world.control, attempt.gradients, attempt.weights, step
            )
            if not self._options.skip_nonfinite:
                raise NonFiniteError(text)
        self.counts.skipped += 1
