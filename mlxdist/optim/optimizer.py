"""DistributedOptimizer: any MLX optimizer, on N ranks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Literal

import mlx.core as mx
import mlx.optimizers as optim
from mlx.nn import Module
from mlx.utils import tree_flatten

from ..arrays.trees import entries_of, trainable
from ..arrays.types import Array, Dtype, Tree
from ..comm.agreement import agree
from ..layout.buckets import DEFAULT_BUCKET_SIZE
from ..layout.sharding import Strategy
from ..world import process
from ..world.join import current
from ..world.world import World
from . import ema, setup, state
from .buffers import Mode, SyncedBuffers
from .checks import matching
from .describe import Description, describe
from .inner import InnerOptimizer, Optimizer
from .options import Options, Transport
from .pipeline import Pipelines
from .resumable_state import ResumableState
from .step import DistributedStep
from .targets import ModelTarget, Target, TreeTarget


class DistributedOptimizer(optim.Optimizer):
    """Wraps an MLX optimizer so that N ranks train one model.

    Each `update` averages the gradients over the ranks and applies the same step
    everywhere. With `shard`, each rank holds the optimizer's state for its share of
    the parameters alone, updates that share, and all ranks exchange the results (ZeRO
    stage 1, Rajbhandari et al., SC 2020). Results do not depend on `shard`.

    It is an `mlx.optimizers.Optimizer` and goes wherever one goes. A whole step may be
    compiled, with sharded state too; over transport "native" or "auto"::

        state = [model.state, optimizer.state]  # after optimizer.init(model)

        @partial(mx.compile, inputs=state, outputs=state)
        def step(x, y):
            loss, grads = nn.value_and_grad(model, loss_of)(model, x, y)
            optimizer.update(model, grads)
            return loss

    Args:
        optimizer: the optimizer to wrap; it must not be used on its own any more.
        shard: False keeps all state on all ranks. "elements" cuts it into equal flat
            slices, for optimizers that treat each element by itself; "tensors" gives
            each tensor to one rank, for all others; True chooses between the two.
        world: what `mlxdist.init()` gave; the one that was joined where it is None.
        transport: "native" is lazy `mx.distributed`, needed inside `mx.compile`;
            "host" is MPI on evaluated arrays. "auto" takes "host" over MPI, outside
            `mx.compile`, for sharded state, and for all where ranks compute and
            communicate at once: on several hosts, or on an accelerator. Otherwise
            "native". "host" adds in rank order, "native" in MPI's own.
        bucket_size: bytes of gradients that travel together.
        reduce_dtype: what "native" adds in. "host" always adds in float32.
        wire_dtype: what gradients travel as with transport="host", which must be given
            then, such as mx.bfloat16; they are added in float32 all the same. None: as
            they are.
        max_norm: clips the averaged gradient to this global norm; None leaves it.
            math.inf measures `grad_norm` without clipping.
        skip_nonfinite: skips a step on all ranks where the averaged gradient has a nan
            or inf, and counts it in `skipped`. False raises, which costs nothing more.
        check_every: steps between comparisons of all parameters' checksums over the
            ranks, and of state that is replicated; 0 never compares them. A sharded
            optimizer sends all parameters anew at each step, which mends or spreads
            what went wrong since the last check: 1 finds all of it.
        master_dtype: mx.float32 keeps a float32 master of each 16-bit parameter, with
            float32 state, in this rank's shard: 4 + 12/N bytes a parameter with AdamW,
            its gradient's included. Parameters travel in their own dtype.
        loss_scale: multiply losses by `optimizer.loss_scale` before taking gradients,
            and `update` divides by it: for fp16. "dynamic" begins with 65536, halves
            it where gradients overflow, which skips the step on all ranks, and doubles
            it after 2000 steps without; a number stays.
        accumulate: micro-batches that make a step: the last of so many updates moves
            the parameters, by the weighted mean over all micro-batches of all ranks.
            The others add up their gradients here in float32 (4 bytes a parameter) and
            send nothing.
        ema_decay: keeps an average of the parameters in float32 (4/N bytes each),
            decay * average + (1 - decay) * parameter at each step; see `averaged`.
        sync_buffers: what becomes of arrays that are not trained but change, such as
            BatchNorm's running statistics, at each step: "mean" averages them over the
            ranks, weighted, "root" takes rank 0's, None leaves each rank its own.
        reproducible: the same bits on any number of ranks, however state is cut and on
            either transport, for the same micro-batches: rank r of N holds micro-batch
            r * K to (r + 1) * K - 1 of K * N, where accumulate=K, a power of two. They
            are added in one binary tree that doesn't depend on who holds them, the
            gradient's squares as well. It costs: gradients travel as float32; (log2 K +
            1) float32 copies of them here; over "native" (N-1) times their bytes and
            not 2(N-1)/N; with N > 1 or `max_norm` a pass over this rank's gradients in
            float64, 2 ns an element on a core of ours.

    Bytes that a rank sends per step, for S bytes of gradients on N ranks: 2(N-1)/N S,
    replicated or sharded; sharded over "native" 3(N-1)/N S, since MLX has no
    reduce-scatter over MPI or its ring. "native" sends 16-bit gradients as float32.
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
        max_norm: float | None = None,
        skip_nonfinite: bool = False,
        check_every: int = 100,
        master_dtype: Dtype = None,
        loss_scale: Literal["dynamic"] | float | None = None,
        accumulate: int = 1,
        ema_decay: float | None = None,
        sync_buffers: Mode | None = None,
        reproducible: bool = False,
    ):
        super().__init__()
        self.world = current() if world is None else world
        self._inner = InnerOptimizer(_checked(optimizer))
        self.options = Options(
            strategy=self._inner.strategy(shard),
            transport=transport,
            bucket_size=bucket_size,
            reduce_dtype=reduce_dtype,
            wire_dtype=wire_dtype,
            max_norm=max_norm,
            skip_nonfinite=skip_nonfinite,
            check_every=check_every,
            master_dtype=master_dtype,
            loss_scale=loss_scale,
            accumulate=accumulate,
            ema_decay=ema_decay,
            sync_buffers=sync_buffers,
            reproducible=reproducible,
        )
        self.options.check(self.world)
        self._name = f"optimizer {next(self.world.optimizer_numbers)}"
        self._steps = DistributedStep(
            self.world, self._name, self._inner, self.options, self.init
        )
        self._buffers = SyncedBuffers(sync_buffers, self.world)
        self._state_bytes: tuple[int, ...] = ()
        self._has_ema_in_place = False

    # -- what every MLX optimizer has

    def init(self, parameters: Tree) -> None:
        """Put the same parameters and state on all ranks, and plan who owns what.

        Args:
            parameters: the model, whose parameters all become rank 0's, the frozen
                ones and buffers too; or a tree of arrays, which has to be the same on
                all ranks already, since it can't be changed in place.

        Called again, after freezing layers or adding some, it keeps the state of those
        parameters that it had.

        Raises:
            MismatchError: on all ranks, where the optimizer, its settings, or the
                parameters' paths, shapes or dtypes differ, or a tree's values do.
            ValueError: where a parameter can't be trained.
        """
        self._refuse_ema_in_place("call init")
        entries = entries_of(trainable(parameters))
        world, inner, options = self.world, self._inner, self.options
        self._steps.micro_batches.drop()
        setup.agree_to_init(world, self._name, entries, inner, options)
        flat = dict(tree_flatten(trainable(parameters)))
        old_plan = self._steps.pipelines.plan if self.is_initialized else None
        before = setup.earlier_state(world.control, inner, old_plan, flat)
        flat = setup.share_parameters(world, parameters)
        plan = setup.plan_parameters(world.control, inner, options, entries, list(flat))
        nbytes = setup.make_state(
            world.control, inner, plan, flat, before, options.copies
        )
        self._steps.use(setup.make_pipelines(world, self._name, plan, inner, options))
        self._buffers.remember(parameters)
        self._state_bytes = setup.state_bytes_by_rank(world, self._name, nbytes)
        process.return_freed_memory()

    def update(
        self, model: Module, gradients: Tree, weight: float | None = None
    ) -> None:
        """Average the gradients over the ranks and step a model.

        The model's parameters are replaced bucket by bucket, so that there is never a
        second set of all of them. Arguments and errors are those of `apply_gradients`.
        """
        target = ModelTarget(model)
        self._take_step(gradients, target, weight)
        if target.was_updated:
            self._buffers.sync(model, self._steps.weight)

    def apply_gradients(
        self, gradients: Tree, parameters: Tree, weight: float | None = None
    ) -> Tree:
        """Average the gradients over the ranks and return the updated parameters.

        Args:
            gradients: this rank's, with the paths, shapes and dtypes of `init`. An
                empty tree on all ranks steps the schedules alone.
            parameters: the same tree, or one that contains it; the same on all ranks.
            weight: how much this rank's gradients count, such as its number of tokens;
                1 where it is None. 0 leaves them out, even where they are nan.

        Returns:
            New arrays in the structure of `gradients`, the same bits on all ranks.

        Raises:
            MismatchError: on all ranks, before anything has changed, where gradients
                or weights are not what they must be on one of them.
        """
        target = TreeTarget(parameters)
        self._take_step(gradients, target, weight)
        index = self._steps.index
        if target.leaves and index is not None:
            return index.rebuilt(gradients, target.leaves)
        return matching(gradients, parameters)[0]

    @property
    def state(self) -> Tree:
        """The wrapped optimizer's state on this rank: its shard, where it is cut.

        'step', 'learning_rate', and a tree like the parameters without what other ranks
        own. `gather_state` returns all of it.
        """
        return self._inner.optimizer.state

    @state.setter
    def state(self, value: Tree) -> None:
        self._inner.optimizer.state = value

    @property
    def step(self) -> Array:
        return self._inner.leaves[0].optimizer.state["step"]

    @property
    def learning_rate(self) -> Array:
        return self._inner.optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, value: float | Array) -> None:
        self._inner.optimizer.learning_rate = value

    # -- what a DistributedOptimizer has besides

    @property
    def optimizer(self) -> Optimizer:
        """The wrapped optimizer."""
        return self._inner.optimizer

    @property
    def strategy(self) -> Strategy:
        """How state is cut: "replicated", "elements" or "tensors"."""
        return self.options.strategy

    @property
    def skipped(self) -> int:
        """Steps that all ranks skipped, since gradients were not finite."""
        return self._steps.counts.skipped

    @property
    def grad_norm(self) -> Array:
        """Global norm of the last averaged gradient before clipping, float32 scalar.

        Not finite where that step was skipped.

        Raises:
            ValueError: where `max_norm` is None, and so nothing was measured.
        """
        if self.options.max_norm is None:
            raise ValueError(
                "grad_norm is measured with max_norm only; max_norm=math.inf measures "
                "without clipping"
            )
        if self._steps.norm is None:
            raise ValueError(
                "there is no grad_norm yet: nothing was updated, or inside mx.compile"
            )
        return self._steps.norm

    @property
    def loss_scale(self) -> Array:
        """Factor for losses before gradients are taken: a float32 scalar.

        The loss itself should be float32: the product may be too large for fp16.
        """
        return mx.array(self._steps.loss_scale.value)

    def no_sync(self) -> AbstractContextManager[None]:
        """While in it, updates add up their gradients and send nothing.

        The first update after it steps with the mean over all of them, whatever
        `accumulate` is. All ranks have to make the same number of updates::

            with optimizer.no_sync():
                optimizer.update(model, first, weight=tokens)
            optimizer.update(model, second, weight=more_tokens)
        """
        return self._steps.micro_batches.no_sync()

    @contextmanager
    def averaged(self, model: Module) -> Iterator[None]:
        """While in it, the model has its EMA weights: to evaluate with.

        Called by all ranks; each sends its share of them, as parameters travel, and
        holds both. Save, load and update after it. Needs `ema_decay`::

            with optimizer.averaged(model):
                loss = validate(model)
        """
        if self.options.ema_decay is None:
            raise ValueError("there are no averages to use: pass ema_decay=0.999")
        self._refuse_ema_in_place("swap them in again")
        wire = self._steps.require_pipelines().eager.wire
        shard = state.read(self._inner, wire.plan.shard(self.world.rank))
        with ema.swapped_in(model, shard, wire, f"{self._name}.averaged"):
            self._has_ema_in_place = True
            try:
                yield
            finally:
                self._has_ema_in_place = False

    def gather_state(self) -> Tree:
        """Return the full state in MLX's own layout, on every rank.

        What the wrapped optimizer would hold in one process: it may be saved, given to
        one, or loaded with `load_state` on any number of ranks. Masters and averages
        stand in it as "master" and "average", which MLX ignores. Called by all ranks;
        sends each rank's own state to all others.
        """
        plan, comm = self._steps.require_pipelines().plan, self.world.control
        name = f"{self._name}.gather_state"
        with self.world.recorder.call(name, self._steps.counts.steps):
            agree(comm, name, plan.fingerprint)
            shard = state.read(self._inner, plan.shard(comm.rank))
            return state.to_mlx(self._inner, state.gather(shard, plan, comm))

    def load_state(self, full: Tree) -> None:
        """Take a full state, the same on all ranks, and keep this rank's shard of it.

        Raises:
            MismatchError: on all ranks, and nothing is loaded, where it lacks a
                parameter or its shapes or dtypes are others.
        """
        setup.load_full_state(
            self.world,
            f"{self._name}.load_state",
            self._inner,
            self._steps.require_pipelines().plan,
            self.options.copies,
            full,
        )

    def describe(self) -> Description:
        """Return who owns what, what is sent, and the bytes of state on each rank."""
        return describe(
            self._steps.require_pipelines(),
            optimizer=type(self.optimizer).__name__,
            accumulates=self._steps.micro_batches.active,
            pairwise=self.options.reproducible,
            state_bytes_by_rank=self._state_bytes,
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
        """Return what a checkpoint reads and replaces.

        Args:
            action: "save" or "load".

        Raises:
            ValueError: before `init`, while a model has its EMA weights in place, or on
                "save" in the middle of a step's micro-batches.
        """
        self._refuse_ema_in_place(action)
        count = self._steps.micro_batches.count
        if action == "save" and count:
            raise ValueError(
                f"{count} micro-batches of a step are added up and not applied yet: "
                "save after the step's last update"
            )
        return ResumableState(
            self.world,
            self._steps.require_pipelines().plan,
            self._inner,
            self._steps.counts,
            self._steps.loss_scale,
            self._steps.micro_batches,
        )

    def _take_step(self, gradients: Tree, target: Target, weight: float | None) -> None:
        self._refuse_ema_in_place("update")
        self._steps.take(gradients, target, weight)

    def _refuse_ema_in_place(self, action: str) -> None:
        if self._has_ema_in_place:
            raise ValueError(
                f"the model has its EMA weights in place: {action} after the `with "
                "optimizer.averaged(model)` block"
            )


def _checked(optimizer: Optimizer) -> Optimizer:
    """Return the optimizer to wrap; ValueError where it is none, or wrapped already."""
    if not isinstance(optimizer, optim.Optimizer):
        raise ValueError(
            f"the optimizer is {optimizer!r}; it must be an mlx.optimizers.Optimizer, "
            "such as optim.AdamW(3e-4)"
        )
    if isinstance(optimizer, DistributedOptimizer):
        raise ValueError("the optimizer is a DistributedOptimizer already")
    return optimizer
