"""What is wrong with the options of a `DistributedOptimizer`, in a world or a trace."""

from __future__ import annotations

import math
from collections.abc import Sequence

import mlx.core as mx

from ..arrays.types import Dtype
from ..world.world import World
from . import loss_scale
from .accumulation import pairwise_problem
from .hyperparameters import Optimizer
from .masters import check_option as check_master_dtype
from .options import Options

_FLOATS = (mx.float32, mx.bfloat16, mx.float16)
_BOOLS = (
    "skip_nonfinite",
    "check_finite",
    "accumulate_sharded",
    "reproducible",
    "overlap_forward",
)
_COMPILE_REMEDY = (
    "compile the computation of loss and gradients alone, and call update() outside"
)


def check(options: Options, world: World, optimizers: Sequence[Optimizer]) -> None:
    """Raise ValueError where an option is invalid, or can't work in this world.

    Args:
        optimizers: those that are wrapped.
    """
    _check_numbers(options)
    problem = (
        loss_scale.option_problem(options.loss_scale)
        or options.quantized.option_problem()
        or options.quantized.optimizers_problem(optimizers)
        or _sharded_sums_problem(options)
        or _unchecked_problem(options)
    )
    if problem is not None:
        raise ValueError(problem)
    _check_transport(options, world)
    if options.reproducible:
        _check_reproducible(options, world)


def untraceable(options: Options, *, accumulates: bool) -> str | None:
    """Return why a step can't work inside `mx.compile`, or None.

    Args:
        accumulates: whether micro-batches are being added up.
    """
    if options.transport == "host":
        return (
            'transport="host" works on evaluated arrays and can\'t be traced by '
            'mx.compile: use transport="native" or "auto", or call update() outside'
        )
    if accumulates or options.sync_buffers:
        return (
            "accumulate, no_sync(), sync_buffers and reproducible=True can't work "
            f"inside mx.compile: {_COMPILE_REMEDY}"
        )
    if options.mean_dtype is not None:
        return "mean_dtype can't work inside mx.compile; leave it out"
    if options.skip_nonfinite:
        return "skip_nonfinite=True can't work inside mx.compile; leave it out"
    if options.loss_scale == "dynamic":
        return (
            'loss_scale="dynamic" can\'t work inside mx.compile: pass a number, or '
            f"{_COMPILE_REMEDY}"
        )
    return None


def _check_numbers(options: Options) -> None:
    norm, decay = options.max_norm, options.ema_decay
    if norm is not None and not (_is_number(norm) and norm > 0):
        raise ValueError(
            f"max_norm is {norm!r}; it must be above 0, or None not to clip"
        )
    _check_count("bucket_size", options.bucket_size, 1, "1 byte or more")
    _check_count("check_every", options.check_every, 0, "0 or more steps")
    _check_count("accumulate", options.accumulate, 1, "1 or more")
    for name in _BOOLS:
        if not isinstance(getattr(options, name), bool):
            raise ValueError(f"{name} is {getattr(options, name)!r}; it is a bool")
    check_master_dtype(options.master_dtype)
    if decay is not None and not (_is_number(decay) and 0 <= decay < 1):
        raise ValueError(
            f"ema_decay is {decay!r}; it must be from 0 up to below 1, or None"
        )
    if options.sync_buffers not in (None, "mean", "root"):
        raise ValueError(
            f'sync_buffers is {options.sync_buffers!r}; it must be "mean", "root" or '
            "None"
        )


def _check_transport(options: Options, world: World) -> None:
    if options.transport not in ("auto", "native", "host"):
        raise ValueError(
            f'transport is {options.transport!r}; it must be "auto", "native" or "host"'
        )
    if options.transport == "host" and world.host_transport is None:
        raise ValueError(
            'transport="host" works over MPI, and this world is on '
            f'{world.backend!r}: use mlxdist.init("mpi") or transport="native"'
        )
    for name, dtype in _wire_dtypes(options).items():
        if dtype is not None and dtype not in _FLOATS:
            raise ValueError(
                f"{name} is {dtype!r}; it must be mx.float32, mx.bfloat16 or mx.float16"
            )
    if options.wire_dtype is not None and options.transport != "host":
        raise ValueError(
            f'wire_dtype={options.wire_dtype} needs transport="host": others would '
            "round the sum to it at every hop"
        )
    if options.mean_dtype is not None and not (
        options.is_sharded
        and world.transport("auto", sharded=True).adds_in_rank_order
        and options.transport != "native"
    ):
        raise ValueError(
            f"mean_dtype={options.mean_dtype} rounds this rank's share of the means: "
            'use shard=True, over MPI with transport="auto" or "host"'
        )
    if options.transport == "host" and options.reduce_dtype != mx.float32:
        raise ValueError(
            f'transport="host" adds in float32, not in {options.reduce_dtype}; to '
            "send fewer bytes use wire_dtype"
        )


def _check_reproducible(options: Options, world: World) -> None:
    for name, dtype in _wire_dtypes(options).items():
        if dtype is not None and dtype != mx.float32:
            raise ValueError(
                f"reproducible=True adds and sends in float32, and {name} is {dtype}"
            )
    problem = pairwise_problem(options.accumulate, world.size)
    if world.size > 1 and problem is not None:
        raise ValueError(problem)


def _sharded_sums_problem(options: Options) -> str | None:
    """Why sums of micro-batches can't be kept as this rank's shares, or None."""
    if not options.accumulate_sharded:
        return None
    if not options.is_sharded:
        return (
            "accumulate_sharded=True keeps this rank's share of the sums, and with "
            "shard=False every rank steps all of them: use shard=True"
        )
    if options.reproducible:
        return (
            "accumulate_sharded=True adds the ranks' gradients before the "
            "micro-batches, and reproducible=True in pairs over all micro-batches: use "
            "one of them"
        )
    if options.mean_dtype is not None:
        return (
            "accumulate_sharded=True adds means of micro-batches in float32, and "
            "mean_dtype rounds them: use one of them"
        )
    return None


def _unchecked_problem(options: Options) -> str | None:
    """Which option looks at the gradients that another leaves unchecked, or None."""
    if options.check_finite:
        return None
    measures = {
        f"max_norm={options.max_norm}": options.max_norm is not None,
        "skip_nonfinite=True": options.skip_nonfinite,
        'loss_scale="dynamic"': options.loss_scale == "dynamic",
    }
    for option, is_given in measures.items():
        if is_given:
            return (
                f"check_finite=False looks at no gradient, and {option} has to look at "
                "all of them: use one of them"
            )
    return None


def _wire_dtypes(options: Options) -> dict[str, Dtype]:
    names = ("wire_dtype", "reduce_dtype", "mean_dtype")
    return {name: getattr(options, name) for name in names}


def _is_number(value: object) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and not math.isnan(float(value))  # type: ignore[arg-type]


def _check_count(name: str, value: object, least: int, wanted: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} is {value!r}; it must be {wanted}")
