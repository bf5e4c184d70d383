"""The distributed step: average gradients, clip, update this rank's shard, gather."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ..arrays import device
from ..arrays.trees import leaves_of
from ..arrays.types import Array, Flat, Tree
from ..comm.agreement import MismatchError, OnAllRanks
from ..comm.reduction import Weights
from ..world.world import World
from . import grad_norm, setup
from .accumulation import MicroBatches, sum_dtype
from .attempt import Attempt, end_attempt
from .batch import (
    Batch,
    TreeIndexes,
    batch_problem,
    matching,
    missing_problem,
)
from .grad_norm import NonFiniteError, Norm
from .gradient_scale import GradientScale
from .identical_gradients import warn_if_identical
from .inner_optimizer import InnerOptimizer
from .local_gradients import LocalGradients
from .managed_state import NEW
from .options import Options
from .partial_update import leave_out
from .pipeline import Pipeline, Pipelines
from .resumable_state import ResumableState, StepCounts
from .sharded_accumulation import add_share
from .share_state import share_after_errors
from .step_checks import call_name, warn_without_weight
from .targets import Target


class DistributedStep:
    """Takes the steps of one optimizer, and holds what changes from step to step.

    Args:
        initialize: called with the parameters, at a first step without `init`.

    Attributes:
        is_planned: whether `pipelines` are those of a model's parameters.
        layout: of this rank's state.
        index: of the gradients' and the parameters' trees.
        scale: of losses and gradients.
        weight, total_weight: this rank's in the last step, and the sum over the ranks.
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
            options.accumulate,
            pairwise=options.reproducible,
            sharded=options.accumulate_sharded,
        )
        self.scale = GradientScale(options)
        self.counts = StepCounts()
        self.layout = setup.empty_layout(world, options)
        plan = self.layout.plan
        self.pipelines = Pipelines(world, NEW, plan, inner, options, compiled=False)
        self.is_planned = False
        self.index: TreeIndexes | None = None
        self.weight: float = 1.0
        self.total_weight: Array = None
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
            self.scale.loss_scale,
            self.micro_batches,
            self._options.copies.masters,
        )

    def take(self, batch: Batch, target: Target) -> None:
        """Average the gradients over the ranks and take a step, phase by phase."""
        self.counts.refuse_broken()
        batch.problem = self.counts.torn or batch.problem
        warn_without_weight(self._world, batch.weight)
        run = self._pipeline_for(batch, target)
        if batch.gradients and not self.micro_batches.sends_next:
            self._accumulate(batch)
            return
        recorder, name = self._world.recorder, call_name(self.pipelines.name, batch)
        with recorder.call(name, self.counts.steps + 1), run.scope():
            # 1. Agree: here a step is refused, on all ranks or on none.
            run, weights = self._agree(run, batch)
            scalars = [leaf.scalars() for leaf in self._inner.leaves]
            try:
                if batch.gradients and self.micro_batches.expects_more:
                    self._add_share(run, batch, weights)
                elif batch.gradients:
                    self._step(run, batch, weights, target)
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
        target: Target,
    ) -> None:
        """Take the step that all ranks have agreed to, or end it on an error."""
        self.index = batch.index or TreeIndexes.of(self.pipelines.plan, batch)
        gradients, weights = self._local_gradients(batch, weights)
        if run is self.pipelines.eager:
            self._warn_once(gradients, weights, weighted=batch.weight is not None)
        part = leave_out(run, self._inner, batch, gradients.unsent)
        attempt = Attempt(part, self.index, target, gradients, weights)
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
        self.total_weight = attempt.weights.total
        if is_taken:
            self.counts.steps += 1
            self.scale.loss_scale.stepped()

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
        attempt.update(batch.parameters, self.scale.of_means(norm))
        return True

    def _pipeline_for(self, batch: Batch, target: Target) -> Pipeline:
        """Choose how to run a step; initialize at the first one."""
        first = list(self._first_gradients(batch.gradients).values())
        try:
            eager = device.start_evaluation(
                [*batch.outputs, *first] or self._inner.scalars()
            )
        except RuntimeError as error:  # of the user's computation, or out of memory
            device.recover(leaves_of(target.parameters).values())
            if self._world.size == 1:
                raise
            eager = True
            batch.problem = f"the gradients can't be evaluated: {error}"
        if not self.is_planned and batch.gradients and batch.problem is None:
            self._initialize(matching(batch.tree, target.parameters)[0])
        if not eager:
            micro = self.micro_batches
            return self.pipelines.traced(accumulates=micro.in_no_sync or micro.active)
        return self.pipelines.eager

    def _first_gradients(self, gradients: Flat) -> Flat:
        """The gradients that are sent first, those of the last layers.

        Only those: MLX blocks the caller once its queue of pending work is full.
        """
        plan = self.pipelines.plan
        if plan.buckets and plan.by_path.keys() == gradients.keys():
            entries = plan.buckets[0].entries
            return {entry.path: gradients[entry.path] for entry in entries}
        return dict(list(gradients.items())[-1:])

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

    def _warn_once(
        self, gradients: LocalGradients, weights: Weights, *, weighted: bool
    ) -> None:
        """At the first update, warn where all ranks have the same gradients.

        Of gradients that are dropped when they are sent, those that are sent first.
        """
        if self._world.size > 1 and not self._gradients_compared:
            compared = gradients.kept or self._first_gradients(gradients.unsent)
            self._gradients_compared = warn_if_identical(
                self._world, compared, weights, weighted=weighted
            )

    def _add_share(self, run: Pipeline, batch: Batch, weights: Weights) -> None:
        """Send a micro-batch that is not the step's last one."""
        shares = self.micro_batches.shares
        gradients, of_sums = self._local_gradients(batch, weights)
        try:
            add_share(run.wire, gradients, of_sums, shares, self.counts)
        except BaseException:
            self.micro_batches.drop()
            raise

    def _accumulate(self, batch: Batch) -> None:
        """Add a micro-batch that is not the step's last. Nothing is sent."""
        plan = self.pipelines.plan
        problem = batch_problem(plan, batch) or missing_problem(plan, batch)
        self.micro_batches.add(batch.gradients, batch.weight, plan, problem)
        if self.micro_batches.problem and self._world.size == 1:
            problem = self.micro_batches.problem
            self.micro_batches.drop()
            raise MismatchError(f"{problem}. The step begins anew.")

    def _local_gradients(
        self, batch: Batch, weights: Weights
    ) -> tuple[LocalGradients, Weights]:
        """This rank's gradients and all weights, or the sums of its micro-batches."""
        loss = next(iter(batch.outputs), None)
        keeps = loss is None  # the caller does
        if not self.micro_batches.active:
            return LocalGradients(batch.gradients, keeps=keeps, loss=loss), weights
        assert weights.every is not None, "not inside mx.compile"
        micro = self.micro_batches
        earlier, is_last = micro.shares, not micro.expects_more
        of_sums = Weights.of_sums(weights.every, pairwise=micro.pairwise)
        sums = (micro.finish if is_last else micro.take)(batch.gradients, batch.weight)
        local = LocalGradients(sums, sum_dtype, keeps=keeps, loss=loss)
        if micro.sharded:
            earlier.weight += of_sums.total
            local.earlier, of_sums = earlier, of_sums._replace(total=1.0)
        elif self._world.size == 1:
            for path, array in sums.items():
                sums[path] = array / of_sums.total
        return local, of_sums

    def _skip_or_raise(self, attempt: Attempt, norm: Norm) -> None:
        if not self.scale.overflowed(norm):
            step = self.counts.steps + 1
            text = grad_norm.fault_text(self._world.control, attempt.fault(), step)
            if not self._options.skip_nonfinite:
                raise NonFiniteError(text)
        self.counts.skipped += 1
