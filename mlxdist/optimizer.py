"""DistributedOptimizer: any MLX optimizer, on N ranks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, Literal

import mlx.core as mx
from mlx.nn import Module
from mlx.utils import tree_flatten

from . import checks, norms, prepare, runtime, wrapped
from .agreement import agree
from .collectives import Array, Weights
from .describe import Description, describe
from .finite import NonFiniteError, explain
from .layout import fingerprint
from .resumable import Resumable
from .sharding import Plan, make_plan
from .startup import current
from .structure import Structure
from .trees import Flat, Tree, entries_of, trainable
from .update import COMPILED_FROM, Update
from .wire import Wire, measured
from .world import World

Transport = Literal["auto", "native", "host"]

DEFAULT_BUCKET_SIZE = 4 * 2**20
_names = itertools.count(1)


class DistributedOptimizer(Resumable):
    """Wraps an MLX optimizer so that N ranks train one model.

    Each `update` averages the gradients over the ranks and applies the same step
    everywhere. With `shard`, each rank holds the optimizer's state for its share of
    the parameters alone, updates that share, and all ranks exchange the results (ZeRO
    stage 1, Rajbhandari et al., SC 2020). Results do not depend on `shard`.

    It is an `mlx.optimizers.Optimizer` and goes wherever one goes.

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
    ):
        checks.check_options(optimizer, max_norm, bucket_size, check_every)
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
        self.skipped = 0
        # A world of one is MLX as it is, which checks nothing.
        wanted = max_norm is not None or skip_nonfinite
        self._measures = wanted or self.world.size > 1
        super().__init__(optimizer)
        self._plan: Plan | None = None
        self._wires: dict[str, Wire] = {}
        self._structure: Structure | None = None
        self._name = f"optimizer {next(_names)}"
        self._updates = 0
        self._traced = False
        self._norm: Array | None = None

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
        entries = entries_of(trainable(parameters))
        comm = self.world.control
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
            order=prepare.order_of_use(comm, list(flat)),
        )
        self._wires.clear()
        self._structure = None
        held = prepare.set_up(comm, self._inner, self._plan, flat, before)
        pieces = self._plan.pieces(comm.rank)
        self._local_update = Update(self._inner, self._plan, pieces)
        if sum(entry.nbytes for entry in entries) >= COMPILED_FROM:
            clips = self.max_norm is not None
            prepare.compile_update(
                self.world, self._name, self._local_update, clips=clips
            )
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

    @property
    def grad_norm(self) -> Array:
        """Global norm of the last averaged gradient before clipping, float32 scalar.

        Raises:
            ValueError: where `max_norm` is None, and so nothing was measured.
        """
        if self.max_norm is None:
            raise ValueError(
                "grad_norm is measured with max_norm only; max_norm=math.inf measures "
                "without clipping"
            )
        if self._norm is None:
            raise ValueError(
                "there is no grad_norm yet: nothing was updated, or inside mx.compile"
            )
        return self._norm

    def describe(self) -> Description:
        """Who owns what, what travels, and the bytes of state on each rank."""
        name = type(self.optimizer).__name__
        return describe(self._wire(traced=False), name, self._state_bytes)

    # -- how

    def _stepped(
        self, gradients: Tree, parameters: Tree, weight: float | None
    ) -> Iterator[tuple[str, Array]]:
        """A step: each path with its new parameter; nothing where it was skipped."""
        flat, before, problem = self._flattened(gradients, parameters)
        traced = checks.start(self._plan, flat)
        if self._plan is None and flat and problem is None:
            if traced:
                raise ValueError("call optimizer.init(model) before mx.compile traces")
            self.init(checks.matching(gradients, parameters)[0])
        recorder = self.world.recorder
        tracing = self.world.native.tracing() if traced else nullcontext()
        with recorder.call(f"{self._name}.update", self._updates + 1), tracing:
            weights = self._agree_to_update(flat, before, weight, traced, problem)
            if not flat:
                self._inner.apply_gradients(gradients, parameters)
                return
            if self._structure is None:
                self._structure = Structure(flat, like=gradients)
            wire = self._wire(traced=traced)
            recorder.phase("gradient exchange")
            streams = self.max_norm is None and not traced
            streams = streams and wire.certainly_finite(flat, weights)
            means = wire.reduce(flat, weights, traced=traced, streams=streams)
            measures = self._measures and not streams
            norm = measured(means, wire, traced=traced) if measures else None
            if norm is not None and not traced and not math.isfinite(float(norm)):
                self._skip_or_raise(flat, weights)
                return
            if not streams:
                flat.clear()
            recorder.phase(
                "exchange and optimizer"
                if streams
                else "optimizer and parameter exchange"
            )
            scale = None
            if self.max_norm is not None:
                self._norm = None if traced else norm
                scale = norms.clip_scale(norm, self.max_norm)
            own = means.used_up()
            stepped = self._local_update.each(own, before, scale, traced=traced)
            for bucket, arrays in wire.gather(stepped, traced=traced):
                if not traced:
                    # In turn on a CPU, where memory is taken when a task is given.
                    on_cpu = mx.default_device() == mx.cpu
                    (mx.eval if on_cpu else mx.async_eval)(arrays)
                for entry, array in zip(bucket.entries, arrays, strict=True):
                    yield entry.path, array
        self._updates += 1

    def _flattened(
        self, gradients: Tree, parameters: Tree
    ) -> tuple[Flat, Flat, str | None]:
        """Gradients and their parameters by path, and what is wrong with them."""
        if self._structure is not None:
            try:
                flat = self._structure.flat(gradients)
                return flat, self._structure.flat(parameters), None
            except (LookupError, TypeError):
                self._structure = None  # it is another tree; told below, if it is wrong
        flat = dict(tree_flatten(gradients))
        tree, problem = checks.matching(gradients, parameters)
        return flat, dict(tree_flatten(tree)), problem

    def _require_structure(self) -> Structure:
        assert self._structure is not None, "gradients were checked before"
        return self._structure

    def _wire(self, *, traced: bool) -> Wire:
        plan = self._require_plan()
        comm = self.world.transport(self.transport, sharded=plan.sharded, traced=traced)
        if comm.name not in self._wires:
            dtype = self.wire_dtype if comm.name == "host" else self.reduce_dtype
            self._wires[comm.name] = Wire(plan, comm, wire_dtype=dtype)
        return self._wires[comm.name]

    def _agree_to_update(
        self, flat: Flat, before: Flat, weight: Any, traced: bool, problem: str | None
    ) -> Weights:
        plan = self._plan
        if plan is not None:
            problem = checks.gradient_problem(plan, flat) or problem
        if self.world.late:
            problem = self.world.late.pop()
        sums: list[str] = []
        if self.check_every and self._updates % self.check_every == 0 and not traced:
            replicated = {} if plan is None or plan.sharded else self._inner.state
            sums = checks.checksums({**before, **dict(tree_flatten(replicated))})
        lines = [f"{self._updates} steps done", *sums]
        if not traced:
            lines += checks.state_scalars(self._inner)
        if traced and self.skip_nonfinite:
            problem = "skip_nonfinite=True can't work inside mx.compile; leave it out"
        # A rank whose batch has another shape traces again, and alone.
        retraced, self._traced = traced and self._traced, self._traced or traced
        return checks.agree_on_step(
            self.world.control,
            f"{self._name}.update" + ("" if flat else " without gradients"),
            fingerprint(lines) ^ (0 if plan is None else plan.fingerprint),
            lambda: [*lines, *(plan.lines if plan else ())],
            weight=weight,
            traced=traced,
            retraced=retraced,
            problem=problem,
        )

    def _skip_or_raise(self, flat: Flat, weights: Weights) -> None:
        told = explain(self.world.control, flat, weights, self._updates + 1)
        if not self.skip_nonfinite:
            raise NonFiniteError(told)
        self.skipped += 1
