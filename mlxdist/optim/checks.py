"""What is checked before a step: on this rank, then with the others."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
from mlx.utils import tree_map

from ..arrays.numpy_view import raw
from ..arrays.types import Flat, Tree
from ..comm.agreement import MismatchError, agree, weight_problem
from ..comm.collectives import Collectives, Weights
from ..layout.sharding import Plan
from ..world.world import World
from .accumulation import is_power_of_two, tree_problem
from .inner import leaves

_FLOATS = [mx.float32, mx.bfloat16, mx.float16]
_REMEDY = (
    ". After freezing or adding layers call optimizer.init(model) again; it keeps the "
    "state of what stays"
)


_DRIFT = (
    "If parameters or state differ, a rank changed them outside of update(), or its "
    "memory failed: start again from a checkpoint, or from rank 0 with init(model)."
)


def check_transport(
    world: World, transport: str, wire_dtype: Any, reduce_dtype: Any
) -> str:
    """The transport, where it can do what is asked of it; ValueError where it can't."""
    if transport not in ("auto", "native", "host"):
        raise ValueError(
            f'transport is {transport!r}; it must be "auto", "native" or "host"'
        )
    if transport == "host" and world.host_transport is None:
        raise ValueError(
            'transport="host" works over MPI, and this world is on '
            f'{world.backend!r}: use mlxdist.init("mpi") or transport="native"'
        )
    for name, dtype in (("wire_dtype", wire_dtype), ("reduce_dtype", reduce_dtype)):
        if dtype is not None and dtype not in _FLOATS:
            raise ValueError(
                f"{name} is {dtype!r}; it must be mx.float32, mx.bfloat16 or mx.float16"
            )
    if wire_dtype is not None and transport != "host":
        raise ValueError(
            f'wire_dtype={wire_dtype} needs transport="host": MPI would round the sum '
            "to it at every hop"
        )
    if transport == "host" and reduce_dtype != mx.float32:
        raise ValueError(
            f'transport="host" adds in float32, not in {reduce_dtype}; to send fewer '
            "bytes use wire_dtype"
        )
    return transport


def check_options(
    optimizer: Any, max_norm: Any, bucket_size: Any, check_every: Any
) -> None:
    """ValueError on options that can't be, with what was found and wanted."""
    if not isinstance(optimizer, optim.Optimizer):
        raise ValueError(
            f"the optimizer is {optimizer!r}; it must be an mlx.optimizers.Optimizer, "
            "such as optim.AdamW(3e-4)"
        )
    if max_norm is not None and not (
        isinstance(max_norm, int | float) and max_norm >= 0
    ):
        raise ValueError(f"max_norm is {max_norm!r}; it must be 0 or more, or None")
    if not isinstance(bucket_size, int) or bucket_size < 1:
        raise ValueError(f"bucket_size is {bucket_size!r}; it must be 1 byte or more")
    if not isinstance(check_every, int) or check_every < 0:
        raise ValueError(f"check_every is {check_every!r}; it must be 0 or more steps")


def check_whole(
    master_dtype: Any,
    loss_scale: Any,
    accumulate: Any,
    ema_decay: Any,
    sync_buffers: Any,
) -> None:
    """ValueError on options that can't be, as `check_options`."""
    if master_dtype is not None and master_dtype != mx.float32:
        raise ValueError(
            f"master_dtype is {master_dtype!r}; it must be mx.float32 or None"
        )
    is_number = isinstance(loss_scale, int | float) and not isinstance(loss_scale, bool)
    if not (loss_scale is None or loss_scale == "dynamic") and not (
        is_number and 2.0**-126 <= loss_scale < 2.0**127
    ):
        raise ValueError(
            f'loss_scale is {loss_scale!r}; it must be "dynamic", a float32 number '
            "above 0, or None"
        )
    if not isinstance(accumulate, int) or accumulate < 1:
        raise ValueError(f"accumulate is {accumulate!r}; it must be 1 or more")
    if ema_decay is not None and not (
        isinstance(ema_decay, int | float) and 0 <= ema_decay < 1
    ):
        raise ValueError(
            f"ema_decay is {ema_decay!r}; it must be from 0 up to below 1, or None"
        )
    if sync_buffers not in (None, "mean", "root"):
        raise ValueError(
            f'sync_buffers is {sync_buffers!r}; it must be "mean", "root" or None'
        )


def check_reproducible(
    world: World, accumulate: int, wire_dtype: Any, reduce_dtype: Any
) -> None:
    """ValueError where bits would depend on the number of ranks."""
    for name, dtype in (("wire_dtype", wire_dtype), ("reduce_dtype", reduce_dtype)):
        if dtype is not None and dtype != mx.float32:
            raise ValueError(
                f"reproducible=True adds and sends in float32, and {name} is {dtype}"
            )
    if world.size > 1 and not is_power_of_two(accumulate):
        raise ValueError(tree_problem(accumulate, world.size))


def state_scalars(optimizer: Any) -> list[str]:
    """Step, learning rate and the like, in words."""
    return [
        f"{name} {value.item()!r}"
        for leaf in leaves(optimizer)
        for name, value in sorted(leaf.state.items())
        if isinstance(value, mx.array) and value.size == 1
    ]


def start(plan: Plan | None, gradients: Flat) -> bool:
    """Starts computing those gradients that travel first, the last layers'.

    No more than those: MLX lets nobody go on who has given it too much to do.

    Returns:
        Whether `mx.compile` is tracing; then there is nothing to compute.
    """
    first = list(gradients.values())[-1:]
    if plan is not None and plan.by_path.keys() == gradients.keys() and plan.buckets:
        first = [gradients[entry.path] for entry in plan.buckets[0].entries]
    try:
        mx.async_eval(first)
    except ValueError:
        return True
    return False


def matching(gradients: Tree, parameters: Tree) -> tuple[Tree, str | None]:
    """The parameters that gradients are for, or why there are none."""
    try:
        return tree_map(lambda _, own: own, gradients, parameters), None
    except (KeyError, IndexError, TypeError) as error:
        return {}, (
            "the gradients have another structure than the parameters: "
            f"{type(error).__name__} {error}"
        )


def gradient_problem(plan: Plan, flat: Flat) -> str | None:
    """How gradients differ from the plan's parameters, or None where they don't.

    No gradients at all are fine: such a step moves the schedules alone.
    """
    if not flat:
        return None
    for entry in plan.entries:
        array = flat.get(entry.path)
        if array is None:
            return f"there is no gradient for {entry}{_REMEDY}"
        if not isinstance(array, mx.array):
            return (
                f"the gradient of {entry.path} is a {type(array).__name__}, wanted an "
                f"mx.array, {entry.dtype}{list(entry.shape)}"
            )
        if tuple(array.shape) != entry.shape or array.dtype != getattr(mx, entry.dtype):
            return (
                f"the gradient of {entry.path} is {array.dtype}{list(array.shape)}, "
                f"wanted {entry.dtype}{list(entry.shape)}{_REMEDY}"
            )
    if len(flat) > len(plan.entries):
        extra = sorted(flat.keys() - plan.by_path.keys())
        return f"there is a gradient for {extra[0]}, which init() did not see{_REMEDY}"
    return None


def checksums(arrays: Flat) -> list[str]:
    """The crc32 of each array's bits, in words: sees any one flipped bit."""
    return [
        f"{path} with crc32 {zlib.crc32(raw(arrays[path]).data):08x}"
        for path in sorted(arrays)
        if isinstance(arrays[path], mx.array)
    ]


def agree_on_step(
    comm: Collectives,
    call: str,
    detail: int,
    describe: Callable[[], list[str]],
    *,
    weight: Any,
    traced: bool,
    retraced: bool = False,
    problem: str | None = None,
) -> Weights:
    """Compares a step over the ranks and gives all of them all weights.

    Inside `mx.compile` this happens once, when it first traces; a weight is then only
    known when the step runs. A rank that traces again, for a batch of another shape,
    does so alone and asks nobody.

    Raises:
        MismatchError: on all ranks, where they differ, or none has any weight.
    """
    late = traced and weight is not None
    own = 1.0 if late or weight is None else float(weight)
    if retraced:
        if problem:
            raise ValueError(problem)
        every = [1.0] * comm.size
        return _weights(comm, weight if late else None, every)
    every = agree(
        comm,
        call,
        detail,
        describe,
        number=own,
        problem=problem or weight_problem(own),
        hint=_DRIFT,
    )
    if not math.fsum(every):
        raise MismatchError(f"{call} refused: every rank has weight 0")
    return _weights(comm, weight if late else None, every)


def _weights(comm: Collectives, late: Any, every: list[float]) -> Weights:
    if late is None:
        return Weights.known(comm.rank, every)
    return Weights(mx.array(late), None, None)
