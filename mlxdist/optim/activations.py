"""Memory of activations: of one forward and backward pass, as MLX counts it."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
from mlx.nn import Module

from ..arrays.types import Array, Tree
from ..comm.agreement import agree_on_success
from ..comm.collectives import Collectives
from ..layout.sharding import Bucket
from .minimize import Computation, LossFunction
from .pipeline import Pipelines


def on_all_ranks(
    comm: Collectives,
    pipelines: Pipelines,
    loss_fn: LossFunction | None,
    model: Tree,
    batch: Sequence[object],
) -> int | None:
    """Return what `measure` does for this rank's batch; None without a loss function.

    Raises:
        MismatchError: on all ranks, where the loss function failed on one.
    """
    if loss_fn is None:
        return None
    buckets = pipelines.plan.buckets

    def action() -> int:
        if model is None:
            raise ValueError("describe(loss_fn, model, *batch) needs the model too")
        return measure(Computation(loss_fn, model, batch, {}), buckets)

    return agree_on_success(comm, f"{pipelines.name}.describe", action)


def measure(computation: Computation, buckets: Sequence[Bucket]) -> int:
    """Return the bytes that a pass takes at its peak, above what is in use before it.

    Gradients are evaluated bucket by bucket and dropped, as `minimize` does. The model,
    its buffers and MLX's random numbers are put back as they were. MLX's count of its
    peak memory begins anew.

    Args:
        buckets: in the order in which the backward pass finishes them.
    """
    model = computation.model
    before: Tree = model.parameters() if isinstance(model, Module) else model
    random: Array = mx.random.state
    mx.eval(before)
    high, low = random[0].tolist()
    try:
        in_use = mx.get_active_memory()
        mx.reset_peak_memory()
        _take_gradients(computation, buckets)
        return int(max(0, mx.get_peak_memory() - in_use))
    finally:
        if isinstance(model, Module):
            model.update(before)
        mx.random.seed((high << 32) | low)  # a seed's halves are its key in MLX


def _take_gradients(computation: Computation, buckets: Sequence[Bucket]) -> None:
    _, batch = computation.run(None, None)
    mx.eval(batch.outputs)
    batch.outputs.clear()
    for bucket in buckets:
        mx.eval([batch.gradients.pop(entry.path) for entry in bucket.entries])
