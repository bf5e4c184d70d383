"""`average_gradients`: the mean over the ranks, for those who keep their optimizer."""

from __future__ import annotations

from contextlib import nullcontext

import mlx.core as mx
from mlx.utils import tree_flatten

from ..arrays.trees import entries_of, rebuild
from ..arrays.types import Tree
from ..comm.wire import Wire
from ..layout.buckets import DEFAULT_BUCKET_SIZE
from ..layout.sharding import make_plan
from ..world.join import current
from ..world.world import World
from .checks import agree_on_step, start
from .setup import dtype_problem


def average_gradients(
    gradients: Tree,
    *,
    world: World | None = None,
    weight: float | None = None,
    bucket_size: int = DEFAULT_BUCKET_SIZE,
) -> Tree:
    """The mean of the gradients over the ranks; takes `nn.average_gradients`' place.

    Buckets are made by path, so that dicts in another order do no harm, and for each
    dtype; 16-bit gradients are added in float32; and a tree that differs between ranks
    is an error, not a wrong sum. Works inside `mx.compile` too.

    Args:
        gradients: a tree of floating-point arrays.
        world: what `mlxdist.init()` gave; the one that was joined where it is None.
        weight: how much this rank's gradients count; 1 where it is None.
        bucket_size: bytes that travel together.

    Returns:
        A tree of the same structure, lazy. Each rank sends 2(N-1)/N of its bytes, for
        16-bit gradients twice that.

    Raises:
        MismatchError: on all ranks, where paths, shapes, dtypes or weights don't fit.
    """
    world = current() if world is None else world
    flat = dict(tree_flatten(gradients))
    entries = entries_of(gradients)
    plan = make_plan(
        entries, world.size, strategy="replicated", bucket_size=bucket_size
    )
    traced = start(plan, flat)
    weights = agree_on_step(
        world.control,
        "average_gradients",
        plan.fingerprint,
        lambda: list(map(str, entries)),
        weight=weight,
        traced=traced,
        retraced=traced,  # it can't be known whether other ranks trace as well
        problem=dtype_problem(entries),
    )
    with world.native.tracing() if traced else nullcontext():
        wire = Wire(plan, world.native, wire_dtype=mx.float32)
        means = wire.reduce(flat, weights, traced=True)
        full = {
            entry.path: mean.astype(flat[entry.path].dtype)
            for bucket, pieces in wire.gather(means.used_up(), traced=True)
            for entry, mean in zip(bucket.entries, pieces, strict=True)
        }
    return rebuild(gradients, full)
