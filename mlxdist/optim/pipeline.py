"""The phases of a step, for one way to run them: eager, or while `mx.compile` traces.

A pipeline is chosen once for a step. What it is made of does not ask again whether the
step is traced, alone, or on which transport.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

from ..arrays import device
from ..arrays.types import Pieces
from ..comm.collectives import Collectives
from ..comm.deferred_gather import DeferredGathers
from ..comm.traced_wire import TracedWire
from ..comm.wire import Wire
from ..layout.sharding import Plan
from ..world.world import World
from . import compilation, grad_norm
from .from_root import FromRoot
from .grad_norm import NormPolicy
from .inner_optimizer import InnerOptimizer
from .local_update import LocalUpdate, make_local_update
from .option_checks import untraceable
from .options import Options
from .step_checks import EveryStep, SingleRank, StepAgreement, WhileTracing


@dataclass(frozen=True)
class Pipeline:
    """How each phase of a step works.

    Attributes:
        agreement: compares the step over the ranks.
        wire: exchanges gradients, and gathers parameters.
        norm: measures the mean gradients.
        local: steps this rank's shard.
        finish: called on each bucket's new parameters.
        evaluate: called on the state that has changed with them.
        scope: entered around the step.
    """

    agreement: StepAgreement
    wire: Wire
    norm: NormPolicy
    local: LocalUpdate
    finish: Callable[[Pieces], None]
    evaluate: Callable[[Pieces], None]
    scope: Callable[[], AbstractContextManager[None]]


class Pipelines:
    """The pipelines of one plan. The traced one is made when `mx.compile` first traces.

    Args:
        from_root: whether traced steps take rank 0's parameters: `init` could not.

    Attributes:
        name: of the optimizer, for errors and records.
        eager: replaceable, for measurements.
    """

    def __init__(
        self,
        world: World,
        name: str,
        plan: Plan,
        inner: InnerOptimizer,
        options: Options,
        *,
        compiled: bool,
        from_root: bool = False,
    ):
        self._world, self.name = world, name
        self._inner, self._options = inner, options
        self._from_root = from_root
        self._traced: Pipeline | None = None
        self.plan = plan
        self._compiled = compiled
        self._steps_unchanged: int | None = None  # since the last change
        self.eager = self._eager(compiled)

    def traced(self, *, accumulates: bool) -> Pipeline:
        """Return the pipeline for `mx.compile`.

        Args:
            accumulates: whether micro-batches are being added up.

        Raises:
            ValueError: where an option can't work there.
        """
        problem = untraceable(self._options, accumulates=accumulates)
        if problem is not None:
            raise ValueError(problem)
        if self._traced is None:
            self._traced = self._make_traced()
        return self._traced

    def with_changes(self, *, changed: bool) -> Pipeline:
        """Return the eager pipeline for the present hyperparameters.

        Called by all ranks before each step. Compiled kernels contain hyperparameters.

        Args:
            changed: whether one has changed since the last step, on all ranks.
        """
        if changed:
            self._steps_unchanged = 0
            self._use_kernels(compiled=False)
        elif self._steps_unchanged is not None:
            self._steps_unchanged += 1
            if self._steps_unchanged == compilation.COMPILED_AGAIN_AFTER:
                self._steps_unchanged = None
                self._use_kernels(compiled=self._compile())
        return self.eager

    def _use_kernels(self, *, compiled: bool) -> None:
        if compiled != self._compiled:
            self._compiled = compiled
            local = make_local_update(
                self._inner, self.eager.wire, self._options.copies, compiled=compiled
            )
            self.eager = replace(self.eager, local=local)

    def _compile(self) -> bool:
        return compilation.compile_update(
            self._world, self.name, self._inner, self.plan, self._options
        )

    def _eager(self, compiled: bool) -> Pipeline:
        options, world, plan = self._options, self._world, self.plan
        comm = world.transport(options.transport, sharded=plan.sharded)
        dtype = options.wire_dtype if comm.adds_in_rank_order else options.reduce_dtype
        wire = Wire(
            plan,
            comm,
            wire_dtype=dtype,
            mean_dtype=options.rounded_mean,
            deferred=self._deferred_gathers(comm),
        )
        agreement: StepAgreement = SingleRank(world, self.name, plan)
        if wire.has_peers:
            agreement = EveryStep(
                world, self.name, plan, self._inner, options.check_every
            )
        return Pipeline(
            agreement,
            wire,
            norm_policy(wire, options),
            make_local_update(self._inner, wire, options.copies, compiled=compiled),
            leave_lazy if wire.is_deferred else device.evaluate,
            device.evaluate,
            nullcontext,
        )

    def _deferred_gathers(self, comm: Collectives) -> DeferredGathers | None:
        """How parameters are gathered behind the next forward pass, if they are."""
        streams = self._world.peer_streams
        if streams is None or comm is not self._world.host_transport:
            return None
        if not (self.plan.sharded and self._options.overlap_forward):
            return None
        return DeferredGathers(self.plan.buckets, comm, streams)

    def _make_traced(self) -> Pipeline:
        options, world = self._options, self._world
        wire = TracedWire(self.plan, world.native, wire_dtype=options.reduce_dtype)
        norm: NormPolicy = grad_norm.Unmeasured()
        if options.max_norm is not None:
            norm = grad_norm.TracedNorm(wire)
        update = make_local_update(self._inner, wire, options.copies, traced=True)
        if self._from_root and wire.has_peers:
            update = FromRoot(update, wire)
        return Pipeline(
            WhileTracing(world, self.name, self.plan),
            wire,
            norm,
            update,
            leave_lazy,
            leave_lazy,
            world.native.tracing,
        )


def norm_policy(wire: Wire, options: Options) -> NormPolicy:
    """Return how an eager step measures its gradients."""
    if not options.needs_norm and not (wire.has_peers and options.check_finite):
        return grad_norm.Unmeasured()
    if options.reproducible:
        return grad_norm.PairwiseNorm(wire)
    measured = grad_norm.MeasuredNorm(wire)
    if not options.scales_gradients and grad_norm.CheckedBeforehand.pays(wire):
        return grad_norm.CheckedBeforehand(wire, measured)
    return measured


def leave_lazy(arrays: Pieces) -> None:
    """Evaluate nothing: traced arrays have no values, and others arrive later."""
