"""DistributedOptimizer: any MLX optimizer, on N ranks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal

import mlx.core as mx
from mlx.nn import Module
from mlx.utils import tree_flatten

from ..arrays.trees import entries_of, trainable
from ..arrays.types import Tree
from ..comm.agreement import agree
from ..layout.buckets import DEFAULT_BUCKET_SIZE
from ..layout.sharding import make_plan
from ..world import process as runtime
from ..world.join import current
from ..world.world import World
from . import checks, refused
from . import ema as averages
from . import inner as wrapped
from . import setup as prepare
from .accumulation import Accumulation
from .buffers import Buffers, Mode
from .costs import costs
from .describe import Description, describe
from .local_update import COMPILED_FROM, Update
from .loss_scale import LossScale
from .masters import Beside
from .pipeline import Stepping
from .resumable_state import ResumableState

Transport = Literal["auto", "native", "host"]


class DistributedOptimizer(Stepping):
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
        optimizer: Any,
        *,
        shard: bool | Literal["elements", "tensors"] = False,
        world: World | None = None,
        transport: Transport = "auto",
        bucket_size: int = DEFAULT_BUCKET_SIZE,
        reduce_dtype: Any = mx.float32,
        wire_dtype: Any = None,
        max_norm: float | None = None,
        skip_nonfinite: bool = False,
        check_every: int = 100,
        master_dtype: Any = None,
        loss_scale: Literal["dynamic"] | float | None = None,
        accumulate: int = 1,
        ema_decay: float | None = None,
        sync_buffers: Mode | None = None,
        reproducible: bool = False,
    ):
        checks.check_options(optimizer, max_norm, bucket_size, check_every)
        checks.check_whole(
            master_dtype, loss_scale, accumulate, ema_decay, sync_buffers
        )
        if isinstance(optimizer, DistributedOptimizer):
            raise ValueError("the optimizer is a DistributedOptimizer already")
        self.world = current() if world is None else world
        self.optimizer = optimizer
        self.strategy = wrapped.choose_strategy(optimizer, shard)
        self.transport = checks.check_transport(
            self.world, transport, wire_dtype, reduce_dtype
        )
        self.bucket_size = bucket_size
        self.reduce_dtype = reduce_dtype
        self.wire_dtype = wire_dtype
        self.max_norm = max_norm
        self.skip_nonfinite = skip_nonfinite
        self.check_every = check_every
        self.reproducible = reproducible
        if reproducible:
            checks.check_reproducible(self.world, accumulate, wire_dtype, reduce_dtype)
        super().__init__(
            optimizer,
            beside=Beside(master_dtype, ema_decay),
            accumulation=Accumulation(accumulate, in_tree=reproducible),
            loss_scale=None if loss_scale is None else LossScale(loss_scale),
            buffers=Buffers(sync_buffers, self.world) if sync_buffers else None,
        )

    # -- what every MLX optimizer has

    def init(self, parameters: Tree) -> None:
        """Puts the same parameters and state on all ranks, and plans who owns what.

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
        refused.refuse_lent(self, "call init")
        entries = entries_of(trainable(parameters))
        comm = self.world.control
        self._accumulation.drop()
        prepare.agree_to_init(comm, self._name, entries, prepare.settings(self))
        flat = dict(tree_flatten(trainable(parameters)))
        resolved = wrapped.resolve_filters(self.optimizer, flat)
        holder = resolved if self._plan is None else self._inner
        before = prepare.state_so_far(comm, holder, self._plan, entries)
        prepare.share_parameters(self.world, parameters)
        flat = dict(tree_flatten(trainable(parameters)))
        self._inner = resolved
        self._plan = make_plan(
            entries,
            comm.size,
            strategy=self.strategy,
            bucket_size=self.bucket_size,
            costs=costs(resolved, entries),
            order=prepare.order_of_use(comm, list(flat)),
        )
        self._wires.clear()
        self._structure = None
        beside = self._beside
        held = prepare.set_up(comm, self._inner, self._plan, flat, before, beside)
        pieces = self._plan.pieces(comm.rank)
        self._local_update = Update(self._inner, self._plan, pieces, beside)
        if sum(entry.nbytes for entry in entries) >= COMPILED_FROM:
            scales = self.max_norm is not None or self._loss_scale is not None
            prepare.compile_update(
                self.world, self._name, self._local_update, scales=scales
            )
        if self._buffers is not None:
            self._buffers.remember(parameters)
        told = agree(comm, f"{self._name}.init", 0, list, number=held)
        self._state_bytes = tuple(int(number) for number in told)
        runtime.return_freed_memory()

    def update(
        self, model: Module, gradients: Tree, weight: float | None = None
    ) -> None:
        """Averages the gradients and takes a step; `apply_gradients` says how.

        A model's parameters are replaced bucket by bucket, so that there is never a
        second set of all of them.
        """
        if not isinstance(model, Module):
            raise ValueError(
                f"update() wants a model and found a {type(model).__name__}; for a "
                "tree of parameters there is apply_gradients()"
            )
        places: dict[str, tuple[Any, Any]] = {}
        for path, array in self._stepped(gradients, model, weight):
            places = places or self._require_structure().places(model)
            if path in places:
                container, key = places[path]
                container[key] = array
        if places and self._buffers is not None:
            self._buffers.sync(model, self._weight)

    def apply_gradients(
        self, gradients: Tree, parameters: Tree, weight: float | None = None
    ) -> Tree:
        """Averages the gradients over the ranks and returns the updated parameters.

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
        full = dict(self._stepped(gradients, parameters, weight))
        if full:
            return self._require_structure().rebuilt(gradients, full)
        return checks.matching(gradients, parameters)[0]

    # -- what is new

    def no_sync(self) -> AbstractContextManager[None]:
        """While in it, updates add up their gradients and send nothing.

        The first update after it steps with the mean over all of them, whatever
        `accumulate` is. All ranks have to make the same number of updates::

            with optimizer.no_sync():
                optimizer.update(model, first, weight=tokens)
            optimizer.update(model, second, weight=more_tokens)
        """
        return self._accumulation.hold()

    @contextmanager
    def averaged(self, model: Module) -> Iterator[None]:
        """While in it, the model has the averages of its parameters: to evaluate with.

        Called by all ranks; each sends its share of them, as parameters travel, and
        holds both. Save, load and update after it. Needs `ema_decay`::

            with optimizer.averaged(model):
                loss = validate(model)
        """
        if self._beside.decay is None:
            raise ValueError("there are no averages to use: pass ema_decay=0.999")
        refused.refuse_lent(self, "lend them again")
        kept = averages.lend(self, model, self._wire(traced=False, sums=False))
        self._lent = True
        try:
            yield
        finally:
            self._lent = False
            averages.give_back(kept)

    @property
    def is_initialized(self) -> bool:
        """Whether `init` has planned who holds what."""
        return self._plan is not None

    def resumable_state(self, action: str) -> ResumableState:
        """What a checkpoint reads and replaces.

        Args:
            action: what is about to be done, such as "save", for the error.

        Raises:
            ValueError: before `init`, in the middle of a step's micro-batches, or while
                a model has its EMA weights in place.
        """
        refused.refuse_lent(self, action)
        if action == "save" and self._accumulation.count:
            raise ValueError(
                f"{self._accumulation.count} micro-batches of a step are added up and "
                "not applied yet: save after the step's last update"
            )
        return ResumableState(self)

    def describe(self) -> Description:
        """Who owns what, what travels, and the bytes of state on each rank."""
        name = type(self.optimizer).__name__
        wire = self._wire(traced=False, sums=self._accumulation.sums_up)
        return describe(wire, name, self._state_bytes)
