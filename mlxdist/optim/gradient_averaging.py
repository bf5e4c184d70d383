"""`average_gradients`: the mean over the ranks, for users who keep their optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import mlx.core as mx
import numpy as np

from ..arrays import device
from ..arrays.trees import FLOATS, entries_of, leaves_of, rebuild
from ..arrays.types import Flat, Pieces, Tree
from ..comm.agreement import result_or_problem
from ..comm.reduction import Weights
from ..comm.traced_wire import TracedWire
from ..layout.buckets import DEFAULT_BUCKET_SIZE
from ..layout.entries import Entry
from ..layout.sharding import Plan, make_plan
from ..world.join import current
from ..world.world import World
from .step_checks import (
    agree_on_weights,
    earlier_problem,
    traced_weights,
    warn_without_weight,
)


def average_gradients(
    gradients: Tree,
    *,
    world: World | None = None,
    weight: float | None = None,
    bucket_size: int = DEFAULT_BUCKET_SIZE,
) -> Tree:
    """Average gradients over the ranks; replaces `nn.average_gradients`.

    Buckets are made by path, so that dicts in another order do no harm, and for each
    dtype; 16-bit gradients are added in float32; and a tree that differs between ranks
    is an error, not a wrong sum. Works inside `mx.compile` too.

    Args:
        gradients: a tree of floating-point arrays.
        world: what `mlxdist.init()` returned; the one that was joined where it is None.
        weight: how much this rank's gradients count; 1 where it is None.
        bucket_size: bytes that are sent together.

    Returns:
        A tree of the same structure, lazy. Each rank sends 2(N-1)/N of its bytes, for
        16-bit gradients twice that.

    Raises:
        MismatchError: on all ranks, where paths, shapes, dtypes or weights don't fit.
        RuntimeError: on a rank whose gradients can't be evaluated. It sends zeros for
            them, and the next call raises MismatchError on all ranks.
    """
    world = current() if world is None else world
    warn_without_weight(world, weight)
    entries, problem = result_or_problem(_floating_entries, gradients)
    if not isinstance(bucket_size, int | np.integer) or bucket_size < 1:
        problem = f"bucket_size is {bucket_size!r}; it must be 1 byte or more"
        bucket_size = DEFAULT_BUCKET_SIZE
    plan = _plan(entries or (), world, int(bucket_size))
    flat = leaves_of(gradients) if problem is None else {}
    first = _first(plan, flat)
    traced = device.may_be_tracing() and not device.start_evaluation(first)
    error = None
    with world.native.tracing() if traced else nullcontext():
        if traced:
            weights = _traced_weights(world, weight, problem)
        else:
            weights, error = _agreed_weights(world, plan, weight, problem, first)
        return rebuild(gradients, _mean(world, plan, flat, weights, error))


def _plan(entries: Sequence[Entry], world: World, bucket_size: int) -> Plan:
    return make_plan(
        entries,
        world.size,
        strategy="replicated",
        bucket_size=bucket_size,
        least_bucket=world.transport("auto", sharded=False).least_bucket,
    )


def _floating_entries(gradients: Tree) -> tuple[Entry, ...]:
    """Return the entries of a tree; ValueError on what can't be averaged."""
    entries = entries_of(gradients)
    for entry in entries:
        if entry.dtype not in FLOATS:
            raise ValueError(
                f"{entry} can't be averaged: its dtype is none of {', '.join(FLOATS)}; "
                "leave it out of the tree, or pass it to world.mean()"
            )
    return entries


def _first(plan: Plan, flat: Flat) -> Pieces:
    """The gradients of the bucket that is sent first; none where the tree is wrong."""
    buckets = plan.buckets[:1] if flat else ()
    return [flat[entry.path] for bucket in buckets for entry in bucket.entries]


def _traced_weights(world: World, weight: float | None, problem: str | None) -> Weights:
    """All ranks' weights. Other ranks may not be tracing, and then can't be asked."""
    if problem:
        raise ValueError(problem)
    return traced_weights(world, weight)


def _agreed_weights(
    world: World,
    plan: Plan,
    weight: float | None,
    problem: str | None,
    first: Pieces,
) -> tuple[Weights, RuntimeError | None]:
    """All ranks' weights. Meanwhile this rank computes the gradients it sends first.

    That takes a while, so the others have what they wait for before. Returns an error
    of that, too.
    """
    errors: list[RuntimeError] = []

    def evaluate() -> None:
        try:
            device.evaluate(first)
        except RuntimeError as error:  # of the user's computation, or out of memory
            errors.append(error)

    weights = agree_on_weights(
        world,
        "average_gradients",
        plan.fingerprint,
        lambda: plan.lines,
        weight=weight,
        problem=problem or earlier_problem(world),
        remedy="Pass the same tree and the same bucket_size on all ranks.",
        meanwhile=evaluate if world.size > 1 else None,
    )
    return weights, next(iter(errors), None)


def _mean(
    world: World,
    plan: Plan,
    flat: Flat,
    weights: Weights,
    error: RuntimeError | None,
) -> Flat:
    """Return the means by path.

    Args:
        error: of this rank's gradients, which it sends zeros for.
    """
    wire = TracedWire(plan, world.native, wire_dtype=mx.float32)
    dtypes = {path: array.dtype for path, array in flat.items()}
    means: Flat = {}
    reduction = wire.reduce(dict(flat), weights)
    try:
        if error is not None:
            raise error
        reduction.collect()
    except RuntimeError as failure:  # of the user's computation, or out of memory
        world.background_errors.append(f"average_gradients ended with {failure}")
        wire.comm.settle()
        zeros = {path: mx.zeros_like(array) for path, array in flat.items()}
        reduction.replace_gradients(zeros)
        reduction.collect()
        raise
    for index, bucket in enumerate(plan.buckets):
        arrays = wire.entries_of_chunk(index, reduction.take(index))
        for entry, mean in zip(bucket.entries, arrays, strict=True):
            means[entry.path] = mean.astype(dtypes[entry.path])
    return means
