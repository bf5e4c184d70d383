"""A step of a DistributedOptimizer, phase by phase: what `update` does."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from ..arrays.tree_index import Structure
from ..arrays.types import Array, Flat, Tree
from ..comm import norms
from ..comm.agreement import MismatchError
from ..comm.collectives import Weights
from ..comm.wire import Means, Wire, measured
from ..layout.entries import fingerprint
from . import checks, refused, tree_norm
from .accumulation import Accumulation
from .buffers import Buffers
from .finite import NonFiniteError, explain
from .local_update import Update
from .loss_scale import LossScale
from .masters import Beside
from .resume import Resumable

_names = itertools.count(1)


class Stepping(Resumable):
    """An optimizer that exchanges what it steps with.

    Its options are those of `DistributedOptimizer`, under the same names.
    """

    transport: str
    reduce_dtype: Any
    wire_dtype: Any
    max_norm: float | None
    skip_nonfinite: bool
    check_every: int
    reproducible: bool
    _local_update: Update

    def __init__(
        self,
        inner: Any,
        *,
        beside: Beside,
        accumulation: Accumulation,
        loss_scale: LossScale | None,
        buffers: Buffers | None,
    ):
        super().__init__(inner)
        self._beside = beside
        self._accumulation = accumulation
        self._loss_scale = loss_scale
        self._buffers = buffers
        self._name = f"optimizer {next(_names)}"
        self._plan = None
        self._wires: dict[tuple[str, bool], Wire] = {}
        self._structure: Structure | None = None
        self._updates = 0
        self.skipped = 0
        self._traced = False
        self._lent = False  # whether a model has averages in its parameters' places
        self._weight = 1.0  # of this rank's gradients in the last step
        self._norm: Array | None = None
        self._midway: Flat = {}  # sums that a checkpoint had, while it is loaded
        # A world of one is MLX as it is, which checks nothing.
        wanted = self.max_norm is not None or self.skip_nonfinite
        wanted = wanted or (loss_scale is not None and loss_scale.dynamic)
        self._measures = wanted or self.world.size > 1

    @property
    def grad_norm(self) -> Array:
        """Global norm of the last averaged gradient before clipping, float32 scalar.

        Not finite where that step was skipped.

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

    @property
    def loss_scale(self) -> Array:
        """What to multiply losses by before gradients are taken: a float32 scalar.

        The loss itself should be float32: the product may be too large for fp16.
        """
        return mx.array(1.0 if self._loss_scale is None else self._loss_scale.value)

    def _stepped(
        self, gradients: Tree, parameters: Tree, weight: float | None
    ) -> Iterator[tuple[str, Array]]:
        """A step: each path with its new parameter; nothing where there was none."""
        flat, before, problem = self._flattened(gradients, parameters)
        traced = checks.start(self._plan, flat)
        if traced or self._lent:
            refused.refuse_here(self, traced=traced)
        if self._plan is None and flat and problem is None:
            self.init(checks.matching(gradients, parameters)[0])
        if flat and self._accumulation.waits:
            self._accumulate(flat, weight, problem)
            return
        recorder = self.world.recorder
        tracing = self.world.native.tracing() if traced else nullcontext()
        with recorder.call(f"{self._name}.update", self._updates + 1), tracing:
            try:
                weights = self._agree_to_update(flat, before, weight, traced, problem)
            except MismatchError:
                self._accumulation.drop()
                raise
            if not flat:
                self._inner.apply_gradients(gradients, parameters)
                return
            if self._structure is None:
                self._structure = Structure(flat, like=gradients)
            sums = self._accumulation.sums_up
            self._weight = weights.own
            if sums:
                flat, weights = self._summed(flat, weight, weights)
            yield from self._exchanged(flat, before, weights, sums, traced=traced)

    def _exchanged(
        self, flat: Flat, before: Flat, weights: Weights, sums: bool, *, traced: bool
    ) -> Iterator[tuple[str, Array]]:
        recorder, wire = self.world.recorder, self._wire(traced=traced, sums=sums)
        recorder.phase("gradient exchange")
        streams = self.max_norm is None and self._loss_scale is None and not traced
        streams = streams and wire.certainly_finite(flat, weights)
        means = wire.reduce(flat, weights, traced=traced, streams=streams)
        norm = None
        if self._measures and not streams:
            norm = self._measured(means, wire, traced=traced)
            if not traced and not math.isfinite(float(norm)):
                self._norm = None if self.max_norm is None else norm
                self._skip_or_raise(flat, weights)
                return
        if not streams:
            flat.clear()
        recorder.phase(
            "exchange and optimizer" if streams else "optimizer and parameter exchange"
        )
        scale = self._factor(norm, traced=traced)
        stepped = self._local_update.each(means.used_up(), before, scale, traced=traced)
        for bucket, arrays in wire.gather(stepped, traced=traced):
            if not traced:
                # In turn on a CPU, where memory is taken when a task is given.
                on_cpu = mx.default_device() == mx.cpu
                (mx.eval if on_cpu else mx.async_eval)(arrays)
            for entry, array in zip(bucket.entries, arrays, strict=True):
                yield entry.path, array
        self._updates += 1
        if self._loss_scale is not None:
            self._loss_scale.took_step()

    def _accumulate(
        self, flat: Flat, weight: float | None, problem: str | None
    ) -> None:
        """Takes a micro-batch that is not the step's last. Nothing travels."""
        if self._plan is not None:
            problem = checks.gradient_problem(self._plan, flat) or problem
        if problem is None:
            self._accumulation.add(flat, weight)
        else:
            self._accumulation.refuse(problem)
        if self._accumulation.problem and self.world.size == 1:
            told = self._accumulation.problem
            self._accumulation.drop()
            raise MismatchError(f"{told}. The step begins anew.")

    def _summed(
        self, flat: Flat, weight: float | None, weights: Weights
    ) -> tuple[Flat, Weights]:
        """The sums of all micro-batches of this rank, and their weights."""
        assert weights.every is not None, "not inside mx.compile"
        of_sums = Weights.of_sums(weights.every, in_tree=self.reproducible)
        sums = self._accumulation.finish(flat, weight)
        if self.world.size == 1:
            return {p: array / of_sums.total for p, array in sums.items()}, of_sums
        return sums, of_sums

    def _measured(self, means: Means, wire: Wire, *, traced: bool) -> Array:
        if self.reproducible:
            return tree_norm.norm_of(means, wire)
        return measured(means, wire, traced=traced)

    def _factor(self, norm: Array | None, *, traced: bool) -> Array | None:
        """What gradients are multiplied with: unscales and clips them."""
        scale = None
        if self._loss_scale is not None:
            scale = mx.array(1 / self._loss_scale.value)
            norm = None if norm is None else norm * scale
        if self.max_norm is not None:
            self._norm = None if traced else norm
            clip = norms.clip_scale(norm, self.max_norm)
            scale = clip if scale is None else clip * scale
        return scale

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

    def _wire(self, *, traced: bool, sums: bool) -> Wire:
        """The wire for gradients, or for sums of them, which are float32."""
        plan = self._require_plan()
        comm = self.world.transport(self.transport, sharded=plan.sharded, traced=traced)
        if (comm.name, sums) not in self._wires:
            dtype = self.wire_dtype if comm.name == "host" else self.reduce_dtype
            if sums and dtype is None:
                dtype = mx.float32
            self._wires[comm.name, sums] = Wire(
                plan,
                comm,
                wire_dtype=dtype,
                mean_dtype=self._mean_dtype(),
                in_tree=self.reproducible,
            )
        return self._wires[comm.name, sums]

    def _mean_dtype(self) -> Any:
        # In 16 bits replicated state would see another norm than sharded state does.
        return mx.float32 if self.reproducible else self._beside.master_dtype

    def _agree_to_update(
        self, flat: Flat, before: Flat, weight: Any, traced: bool, problem: str | None
    ) -> Weights:
        plan, so_far = self._plan, self._accumulation
        if plan is not None:
            problem = checks.gradient_problem(plan, flat) or problem
        if self.world.background_errors:
            problem = self.world.background_errors.pop()
        sums: list[str] = []
        if self.check_every and self._updates % self.check_every == 0 and not traced:
            replicated = {} if plan is None or plan.sharded else self._inner.state
            sums = checks.checksums({**before, **dict(tree_flatten(replicated))})
        lines = [f"{self._updates} steps done", *sums]
        if not traced:
            lines += checks.state_scalars(self._inner)
        if flat and so_far.sums_up:
            lines.append(f"{so_far.count} micro-batches before")
            problem = so_far.problem_with(weight, self.world.size) or problem
            weight = so_far.weight_with(weight)
        if traced:
            problem = refused.untraceable(self) or problem
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
        if self._loss_scale is None or not self._loss_scale.overflowed():
            told = explain(self.world.control, flat, weights, self._updates + 1)
            if not self.skip_nonfinite:
                raise NonFiniteError(told)
        self.skipped += 1
