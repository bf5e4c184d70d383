"""DistributedOptimizer: any MLX optimizer, on N ranks."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Literal

import mlx.core as mx
from mlx.nn import Module

from ..arrays.types import Array, Dtype, Tree
from ..comm.agreement import error_text
from ..layout.buckets import DEFAULT_BUCKET_SIZE
from ..world import process
from ..world.join import current
from ..world.world import World
from . import setup, traced_setup
from .activations import on_all_ranks
from .buffers import Mode
from .describe import Description, describe
from .hyperparameters import Optimizer
from .inner_optimizer import InnerOptimizer
from .managed_state import ManagedState
from .minimize import LossFunction
from .option_checks import check
from .options import Options, StateDtype, Transport
from .pipeline import Pipelines
from .quantized_state import QuantizedState
from .resumable_state import ResumableState
from .step import DistributedStep
from .updates import Updates
from .wrapper import OptimizerWrapper


class DistributedOptimizer(OptimizerWrapper):
    """Wraps an MLX optimizer so that N ranks train one model.

    Each `update` averages the gradients over the ranks and applies the same step
    everywhere. With `shard`, each rank holds the state of its share of the parameters,
    updates that share, and all ranks exchange the results (ZeRO stage 1, Rajbhandari
    et al., SC 2020). Results do not depend on `shard`. A whole step may be compiled,
    with sharded state too; over transport "native" or "auto":

        state = [model.state, optimizer.state]  # after optimizer.init(model)

        @partial(mx.compile, inputs=state, outputs=state)
        def step(x, y):
            return optimizer.minimize(loss_of, model, x, y)

    Args:
        optimizer: the optimizer to wrap; not to be used on its own any more.
        shard: False, True, "elements" (flat slices) or "tensors" (an owner for each).
        world: what `mlxdist.init()` returned; None for the one that was joined.

    The other arguments are the fields of `mlxdist.optim.Options`, which says what each
    does and what it costs.

    Bytes that a rank sends per step, for S bytes of gradients on N ranks: 2(N-1)/N S;
    sharded over "native" 3(N-1)/N S, since MLX has no reduce-scatter over MPI or its
    ring. "native" sends 16-bit gradients as float32.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        shard: bool | Literal["elements", "tensors"] = False,
        world: World | None = None,
        transport: Transport = "auto",
        bucket_size: int = DEFAULT_BUCKET_SIZE,
        reduce_dtype: Dtype = mx.float32,
        wire_dtype: Dtype = None,
        mean_dtype: Dtype = None,
        max_norm: float | None = None,
        skip_nonfinite: bool = False,
        check_finite: bool = True,
        check_every: int = 100,
        master_dtype: Dtype = None,
        loss_scale: Literal["dynamic"] | float | None = None,
        accumulate: int = 1,
        accumulate_sharded: bool = False,
        ema_decay: float | None = None,
        sync_buffers: Mode | None = None,
        reproducible: bool = False,
        overlap_forward: bool = True,
        state_dtype: StateDtype = None,
        float32_state: tuple[str, ...] = ("embed",),
    ):
        arguments = locals()
        self.world = current() if world is None else world
        inner = InnerOptimizer(optimizer, QuantizedState(state_dtype, float32_state))
        self.options = Options.among(arguments, inner.strategy(shard))
        self._compose(inner)

    def _compose(self, inner: InnerOptimizer) -> None:
        """Check the options, and make the parts that change from step to step."""
        check(self.options, self.world, inner.optimizers)
        self._managed = ManagedState(self.world, inner, self.options)
        self._steps = DistributedStep(self.world, inner, self.options, self.init)
        self._updates = Updates(
            self.world, inner, self.options, self._managed, self._steps
        )
        self._made: setup.Initialized | None = None
        self._inner = inner

    def init(self, parameters: Tree) -> None:
        """Put the same parameters and state on all ranks, and plan who owns what.

        Called again, after layers were frozen, added, replaced or cast, it keeps the
        state of each parameter with the same path and shape, in the new dtype, and
        prints on stderr which parameters begin with new state.

        Args:
            parameters: the model, whose parameters all become rank 0's, the frozen
                ones and buffers too; or a tree of arrays, the same on all ranks.

        Raises:
            MismatchError: on all ranks, where the optimizer, its settings, or the
                parameters' paths, shapes or dtypes differ, or a tree's values do, or a
                parameter can't be trained.
        """
        made, inner, problem = self._made, self._inner, None
        try:
            if made and traced_setup.is_repeated(inner, made.layout.plan, parameters):
                return
        except RuntimeError as error:  # of parameters: the other ranks wait
            problem = error_text(error)
        self._steps.counts.refuse_broken()
        problem = problem or self._updates.ema.problem_in_place("call init")
        self._made = self._managed.initialize(parameters, problem)
        self._steps.use(self._made)
        self._updates.buffers.remember(parameters)
        process.return_freed_memory()

    def update(
        self, model: Module, gradients: Tree, weight: float | None = None
    ) -> None:
        """Average the gradients over the ranks and step a model, or a dict.

        There is never a second set of a model's parameters. Arguments and errors are
        those of `apply_gradients`.
        """
        self._updates.update(model, gradients, weight)

    def apply_gradients(
        self, gradients: Tree, parameters: Tree, weight: float | None = None
    ) -> Tree:
        """Average the gradients over the ranks and return the updated parameters.

        Args:
            gradients: this rank's, with the paths, shapes and dtypes of `init`, not
                clipped. An empty tree on all ranks steps the schedules alone.
            parameters: the same tree, or one that contains it; the same on all ranks.
            weight: how much this rank's gradients count, such as its number of tokens;
                1 where it is None. 0 leaves them out, even where they are nan.

        Returns:
            New arrays in the structure of `gradients`, the same bits on all ranks.

        Raises:
            MismatchError: on all ranks, before anything has changed, where gradients
                or weights are not what they must be on one of them.
        """
        return self._updates.apply_gradients(gradients, parameters, weight)

    def minimize(
        self,
        loss_fn: LossFunction,
        model: Module,
        *batch: object,
        weight: float | None = None,
        **keywords: object,
    ) -> Tree:
        """Take the gradients of a loss, average them and step a model, or a dict.

        As `nn.value_and_grad` and `update`, with the same bits, and without ever
        holding all gradients: each is dropped when its bucket has been sent, and this
        rank's share of the means is kept (ZeRO stage 2). With `loss_scale` the loss is
        scaled here.

        Args:
            loss_fn: called with `model`, `batch` and `keywords`; returns a scalar, or a
                tuple of it and other outputs. It communicates nothing.
            weight: as of `apply_gradients`.

        Returns:
            What `loss_fn` returned, evaluated outside of `mx.compile`.

        Raises:
            MismatchError: as `apply_gradients`, and where `loss_fn` fails on a rank.
        """
        return self._updates.minimize(loss_fn, model, batch, keywords, weight)

    @property
    def state(self) -> Tree:
        """The wrapped optimizer's state on this rank: its shard, where it is cut.

        Assign on all ranks a full state in MLX's layout, of which each keeps its shard,
        or on each rank what its own `state` was. The next call that all ranks make
        takes it, or raises MismatchError on all and puts back the state from before.
        Replace arrays in it: one that is written to in place may not be heeded.
        """
        return self._inner.optimizer.state

    @state.setter
    def state(self, value: Tree) -> None:
        self._managed.assign(value)

    @property
    def skipped(self) -> int:
        """Steps that all ranks skipped, since gradients were not finite."""
        return self._steps.counts.skipped

    @property
    def grad_norm(self) -> Array:
        """Global norm of the last averaged gradient before clipping, float32 scalar.

        Not finite where that step was skipped. ValueError without `max_norm`.
        """
        return self._steps.scale.require_norm()

    @property
    def loss_scale(self) -> Array:
        """Factor for float32 losses before gradients are taken: a float32 scalar."""
        return mx.array(self._steps.scale.loss_scale.value)

    @property
    def total_weight(self) -> Array:
        """Sum of all ranks' weights in the last step; a compiled one is nan at 0."""
        return self._steps.total_weight

    def no_sync(self) -> AbstractContextManager[None]:
        """While in it, updates add up their gradients and send nothing.

        The first update after it steps with the mean over all of them. All ranks make
        the same number of updates.
        """
        return self._steps.micro_batches.no_sync()

    def averaged(self, model: Module) -> AbstractContextManager[None]:
        """While in it, the model has its EMA weights: to evaluate with.

        Called by all ranks, which send their shares of them. Save, load and update
        after it. Needs `ema_decay`.
        """
        return self._updates.averaged(model)

    def gather_state(self) -> Tree:
        """Return the full state in MLX's own layout, on every rank.

        As the wrapped optimizer would hold it in one process, with master and EMA
        weights under "master" or "correction", and "average", which MLX ignores. Called
        by all ranks; sends each rank's own state to all others.
        """
        self._steps.require_pipelines()
        return self._managed.gather(self._steps.counts.steps)

    def load_state(self, full: Tree) -> None:
        """Take a full state, the same on all ranks; MismatchError where it misfits."""
        self._steps.require_pipelines()
        self._managed.load(full)

    def describe(
        self,
        loss_fn: LossFunction | None = None,
        model: Tree = None,
        *batch: object,
    ) -> Description:
        """Return who owns what, what is sent, and the memory of a step on this rank.

        With the arguments of `minimize`, on all ranks, it also takes the gradients of
        this batch and measures their activations. The model stays as it is.
        """
        pipelines, comm = self._steps.require_pipelines(), self.world.control
        assert self._made is not None
        return describe(
            self._made,
            pipelines,
            self._inner,
            self.options,
            accumulates=self._steps.micro_batches.active,
            activations=on_all_ranks(comm, pipelines, loss_fn, model, batch),
        )

    @property
    def pipelines(self) -> Pipelines:
        """How steps are run; replace `eager` to measure a step without its checks."""
        return self._steps.pipelines

    @property
    def is_initialized(self) -> bool:
        """Whether `init` has planned who owns what."""
        return self._steps.is_planned

    def resumable_state(self, action: str) -> ResumableState:
        """Return what a checkpoint reads and replaces, to "save" or to "load".

        ValueError before `init`, with EMA weights in place, or in the middle of a step.
        """
        return self._updates.resumable_state(action)
