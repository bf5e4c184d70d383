"""The calls that take a step, and what may be done between two of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager

from mlx.nn import Module

from ..arrays import device
from ..arrays.types import Tree
from ..comm.agreement import MismatchError
from ..world.world import World
from .batch import Batch, matching, read_batch
from .buffers import SyncedBuffers
from .ema import EmaSwap
from .inner_optimizer import InnerOptimizer
from .managed_state import ManagedState
from .minimize import Computation, LossFunction, failed, nothing_trainable
from .options import Options
from .resumable_state import ResumableState
from .rollback import interrupts_wait
from .step import DistributedStep
from .targets import ModelTarget, Target, TreeTarget


class Updates:
    """Reads the arguments of a call, takes the step, and puts the results in place.

    Arguments and errors are those of the methods of `DistributedOptimizer`.

    Attributes:
        buffers: the model's, which steps keep the same on all ranks.
        ema: swaps EMA weights in.
    """

    def __init__(
        self,
        world: World,
        inner: InnerOptimizer,
        options: Options,
        managed: ManagedState,
        steps: DistributedStep,
    ):
        self._world, self._inner = world, inner
        self._managed, self._steps = managed, steps
        self.buffers = SyncedBuffers(options.sync_buffers, world)
        self.ema = EmaSwap(options.copies.ema)

    def update(self, model: Tree, gradients: Tree, weight: float | None) -> None:
        """Step a model, or a dict."""
        if type(model) is dict:
            model.update(self.apply_gradients(gradients, model, weight))
            return
        target = self._model_target(model)
        batch = read_batch(self._steps.index, gradients, model, weight)
        self._step_model(batch, target)

    def apply_gradients(
        self, gradients: Tree, parameters: Tree, weight: float | None
    ) -> Tree:
        """Return the updated parameters, in the structure of the gradients."""
        batch = read_batch(self._steps.index, gradients, parameters, weight)
        return self._step_tree(batch, parameters)

    def minimize(
        self,
        loss_fn: LossFunction,
        model: Tree,
        batch: Sequence[object],
        keywords: Mapping[str, object],
        weight: float | None,
    ) -> Tree:
        """Step a model, or a dict, and return what the loss function returned."""
        target = None if type(model) is dict else self._model_target(model)
        self.ema.refuse_in_place("minimize")
        self._steps.counts.refuse_broken()
        scale = self._steps.scale.of_loss
        computation = Computation(loss_fn, model, batch, keywords, scale)
        try:
            value, owned = computation.run(self._steps.index, weight)
        except Exception as error:
            self._refuse(failed(error, model, weight), TreeTarget(model), error)
            if (problem := nothing_trainable(model)) is not None:
                raise ValueError(problem) from error
            raise
        if target is None:
            model.update(self._step_tree(owned, model))
        else:
            self._step_model(owned, target)
        return value

    def averaged(self, model: Module) -> AbstractContextManager[None]:
        """While in it, the model has its EMA weights."""
        wire = self._steps.require_pipelines().eager.wire
        shard, comm = self._managed.read("averaged"), self._world.control
        return self.ema.swapped_in(
            model, shard, wire, f"{self._managed.name}.averaged", comm
        )

    def resumable_state(self, action: str) -> ResumableState:
        """Return what a checkpoint reads and replaces, to "save" or to "load"."""
        self._steps.counts.refuse_broken()
        self.ema.refuse_in_place(action)
        self._managed.prepare(action)
        if action == "save":
            self._steps.counts.refuse_torn()
            self._steps.micro_batches.refuse_unapplied()
        return self._steps.resumable_state()

    def _refuse(self, batch: Batch, target: Target, error: Exception) -> None:
        """Tell the other ranks of an error of the loss function, if there are any.

        Raises:
            MismatchError: on all ranks, at the last micro-batch of a step. Before, the
                error is kept until then, and the caller raises it on this rank.
        """
        if not device.may_be_tracing() and self._world.size > 1:
            try:
                self._take(batch, target)
            except MismatchError as refusal:
                raise refusal from error

    def _model_target(self, model: Module) -> ModelTarget:
        target = ModelTarget(model)
        self._inner.wrapping.refuse_update()
        return target

    def _step_model(self, batch: Batch, target: ModelTarget) -> None:
        try:
            self._take(batch, target)
        finally:  # after an error too: the other ranks do
            if target.was_updated:
                self.buffers.sync(target.parameters, self._steps.weight)

    def _step_tree(self, batch: Batch, parameters: Tree) -> Tree:
        target = TreeTarget(parameters)
        self._take(batch, target)
        index = self._steps.index
        if target.leaves and index is not None:
            return index.gradients.rebuilt(batch.tree, target.leaves)
        return matching(batch.tree, parameters)[0]

    def _take(self, batch: Batch, target: Target) -> None:
        self.ema.refuse_in_place("update")
        self._managed.settle("update")
        with interrupts_wait():
            self._steps.take(batch, target)
