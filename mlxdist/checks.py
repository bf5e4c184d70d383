"""What is checked before a step: on this rank, then with the others."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map

from .agreement import MismatchError, agree, weight_problem
from .collectives import Array, Collectives, Weights
from .memory import raw
from .sharding import Plan
from .trees import Flat, Tree
from .world import World

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


def is_traced(arrays: list[Array]) -> bool:
    """Whether `mx.compile` is tracing; where it isn't, starts computing the arrays."""
    try:
        mx.async_eval(arrays)
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
    ]


def agree_on_step(
    comm: Collectives,
    call: str,
    detail: int,
    describe: Callable[[], list[str]],
    *,
    weight: Any,
    traced: bool,
    problem: str | None = None,
) -> Weights:
    """Compares a step over the ranks and gives all of them all weights.

    Inside `mx.compile` this happens once, when it traces; a weight that is an array is
    then only known when the step runs.

    Raises:
        MismatchError: on all ranks, where they differ, or none has any weight.
    """
    late = traced and isinstance(weight, mx.array)
    own = 1.0 if late or weight is None else float(weight)
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
    return Weights(weight, None) if late else Weights(own, tuple(every))
