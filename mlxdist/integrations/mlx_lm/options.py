"""The options of the command: those that mlx-lm has not, and what is wrong with any."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import mlx.core as mx
from mlx.optimizers import Optimizer

from ...optim.optimizer import DistributedOptimizer
from ...world.world import World
from .arguments import rows_problem
from .data_files import data_problems
from .sections import section_problems
from .upstream import lora, size_in_bytes

_SHARDS = {"auto": True, "none": False}
_MASTERS = {"float32": mx.float32}
DEFAULTS = {
    "shard": "auto",
    "state_dtype": None,
    "master_dtype": None,
    "compiled": False,
    "checkpoint_every": 0,
    "resume": False,
}
_KINDS = {int: "a whole number", bool: "true or false", str: "text"}
_VALUES: dict[str, tuple[object, ...]] = {
    "shard": ("auto", "elements", "tensors", "none"),
    "fine_tune_type": ("lora", "dora", "full"),
    "state_dtype": (None, "int8"),
    "master_dtype": (None, "float32", "24bit"),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that mlx-lm has not. Each may stand in the YAML file instead."""
    group = parser.add_argument_group(
        "mlxdist", "Over N ranks. --batch-size is the rows of all ranks together."
    )
    group.add_argument(
        "--shard",
        choices=("auto", "elements", "tensors", "none"),
        help="how the optimizer's state is divided among the ranks (default: auto)",
    )
    group.add_argument(
        "--state-dtype", choices=("int8",), help="of the optimizer's moments"
    )
    group.add_argument(
        "--master-dtype",
        choices=("float32", "24bit"),
        help="keep master weights of 16-bit parameters",
    )
    group.add_argument(
        "--compiled",
        action=argparse.BooleanOptionalAction,
        help="compile the whole step, as mlx-lm does (default: no)",
    )
    group.add_argument(
        "--checkpoint-every",
        type=int,
        metavar="ITERS",
        help="save all that --resume needs to ADAPTER_PATH/mlxdist (default: never)",
    )
    group.add_argument(
        "--resume",
        action="store_true",
        default=None,
        help="continue from the last checkpoint, on any number of ranks",
    )


def check(args: argparse.Namespace, ranks: int) -> None:
    """Raise ValueError on options that can't work."""
    if isinstance(args.shard, bool):  # YAML
        args.shard = "auto" if args.shard else "none"
    if isinstance(args.clear_cache_threshold, str):
        with suppress(ArithmeticError, LookupError):  # what is no size is a problem
            args.clear_cache_threshold = size_in_bytes(args.clear_cache_threshold)
    for name, default in _defaults().items():
        setattr(args, name, _converted(getattr(args, name), default))
    problem = next(_problems(args, ranks), None)
    if problem is not None:
        raise ValueError(problem)


def _converted(value: object, default: object) -> object:
    """Return a value of the YAML file in its default's type, if it is as good as one.

    mlx-lm takes 1e2, which is a float in YAML, for 100, and 1 for true.
    """
    if type(default) is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if type(default) is bool and isinstance(value, int) and value in (0, 1):
        return bool(value)
    return value


def _defaults() -> dict[str, object]:
    return {**lora.CONFIG_DEFAULTS, **DEFAULTS}


def _problems(args: argparse.Namespace, ranks: int) -> Iterator[str]:
    for name, default in _defaults().items():
        value = getattr(args, name)
        if type(default) in _KINDS and type(value) is not type(default):
            yield f"{name}: found {value!r}, wanted {_KINDS[type(default)]}"
    yield from section_problems(args, DEFAULTS)
    for name, values in _VALUES.items():
        if getattr(args, name) not in values:
            listed = ", ".join(map(str, values))
            yield f"{name}: found {getattr(args, name)}, wanted {listed}"
    problem = rows_problem(args.batch_size, ranks)
    if problem is not None:
        yield problem
    if not (args.train or args.test):
        yield "nothing to do: add --train, --test or both"
    if args.resume and not args.train:
        yield "--resume continues a training: add --train"
    if find_spec("datasets") is None:
        if getattr(args, "hf_dataset", None):
            yield "hf_dataset: pip install datasets"
        elif not Path(args.data).exists():
            yield (
                f"data: there is no folder {args.data}. If it is the name of a dataset "
                "on Hugging Face, pip install datasets"
            )
    yield from data_problems(args)


def wrap_optimizer(
    optimizer: Optimizer, args: argparse.Namespace, world: World
) -> DistributedOptimizer:
    """Return mlx-lm's optimizer with the options of the command."""
    return DistributedOptimizer(
        optimizer,
        world=world,
        shard=_SHARDS.get(args.shard, args.shard),
        state_dtype=args.state_dtype,
        master_dtype=_MASTERS.get(args.master_dtype, args.master_dtype),
    )
