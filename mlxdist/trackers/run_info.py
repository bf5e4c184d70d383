"""`run.json`: what does not change while a run trains."""

from __future__ import annotations

import contextlib
import json
import math
import platform
import secrets
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import mlx.core as mx

from ..arrays.dtypes import dtype_name
from ..checkpoint.durable import make_folders, write_atomically
from ..optim.optimizer import DistributedOptimizer
from ..version import __version__
from ..world.world import World

Info = dict[str, object]
_PACKAGES = ("mlx", "mlx-lm", "mpi4py", "numpy")


def run_info(
    world: World,
    hosts: list[str],
    optimizer: DistributedOptimizer | None,
    config: Mapping[str, object],
) -> Info:
    """Return what there is to tell about a run, as plain values.

    Args:
        hosts: of the ranks.
        optimizer: its plan is described once it is initialized.
        config: the user's own.
    """
    info: Info = {
        "ranks": world.size,
        "hosts": hosts,
        "backend": world.backend,
        "versions": _versions(),
        "config": {name: plain(value) for name, value in config.items()},
    }
    if optimizer is not None:
        info |= _of_optimizer(optimizer)
    return info


def write(path: Path, info: Info, *, continues: bool) -> Info:
    """Write a run's information, and return it with "started" and "id".

    Args:
        continues: keep these two as an earlier job of the run has written them.

    Raises:
        OSError: it can't be written.
    """
    first: Info = {
        "id": secrets.token_hex(4),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    earlier: Info = {}
    with contextlib.suppress(OSError, ValueError):
        earlier = json.loads(path.read_text())
    if continues and isinstance(earlier, dict):
        first |= {name: earlier[name] for name in first if name in earlier}
    info = {**first, **info}
    make_folders(path.parent)
    write_atomically(path, (json.dumps(info, indent=1) + "\n").encode())
    return info


def plain(value: object) -> object:
    """Return a value as JSON has it: numbers and texts as they are, others as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return dtype_name(value) if isinstance(value, mx.Dtype) else str(value)


def _versions() -> dict[str, str]:
    versions = {"mlxdist": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def _of_optimizer(optimizer: DistributedOptimizer) -> Info:
    info: Info = {
        "optimizer": type(optimizer.optimizer).__name__,
        "options": plain(vars(optimizer.options)),
    }
    if optimizer.is_initialized:
        description = optimizer.describe()
        entries = description.plan.entries
        info["parameters"] = sum(entry.size for entry in entries)
        info["state_bytes_by_rank"] = list(description.state_bytes_by_rank)
        info["state_bytes_unsharded"] = description.state_bytes_unsharded
        info["memory"] = {
            call: {term.name: term.nbytes for term in memory.terms}
            for call, memory in description.memory.items()
        }
    return info
