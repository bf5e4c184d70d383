"""Cases and contenders of `step`, grouped into launches that fit into memory."""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ranks.shapes import shapes_of

from .environment import RANK_PROGRAMS
from .jobs import Job, mpi_job, upstream_environment

LORA = "450x4000"  # tensors as an adapter has them
SIZES = ("1M", "10M", "50M", "200M", LORA, "2000x1000", "2000x1")
QUICK_SIZES = ("1M", "100x1000")
DTYPES = ("float32", "bfloat16")
MLXDIST = ("sharded", "replicated native", "replicated host")
EIGHT_BITS = "sharded int8"  # optimizer state, but for the norms
UPSTREAM, UPSTREAM_TUNED = "upstream", "upstream tuned"
# Averaging and the update inside one mx.compile.
COMPILED, UPSTREAM_COMPILED = "compiled", "upstream compiled"
TORCH = ("torch", "torch zero")
STREAM = "memory"
LARGE = 100_000_000  # parameters above which plain upstream is the only other contender


class Case(NamedTuple):
    """Tensors of one dtype; each contender takes `steps` samples in each round."""

    tensors: str
    dtype: str
    rounds: int
    steps: int

    @property
    def name(self) -> str:
        return f"{self.tensors} {self.dtype}"

    @property
    def parameters(self) -> int:
        return sum(math.prod(shape) for shape in shapes_of(self.tensors).values())

    @property
    def nbytes(self) -> int:
        return self.parameters * (4 if self.dtype == "float32" else 2)


def cases(only: Sequence[str], *, quick: bool) -> list[Case]:
    """Return all cases, or those whose names contain one of the words."""
    all_cases = [
        Case(size, dtype, *_effort(size, quick=quick))
        for size in (QUICK_SIZES if quick else SIZES)
        for dtype in DTYPES
        if dtype == "float32" or "x" not in size or size == LORA
    ]
    return [c for c in all_cases if not only or any(word in c.name for word in only)]


def _effort(size: str, *, quick: bool) -> tuple[int, int]:
    """Return rounds, and samples of each contender in a round."""
    if quick:
        return 3, 2
    efforts = {"1M": (15, 10), "10M": (12, 6), "50M": (10, 3), "200M": (4, 4)}
    return efforts.get(size, (10, 4))


def pairs(case: Case, contenders: Sequence[str]) -> list[tuple[str, str]]:
    """Return the ratios to report: mlxdist against each other contender."""
    if case.tensors != LORA:
        contenders = [name for name in contenders if not name.endswith(COMPILED)]
    if case.parameters > LARGE:
        few = (*MLXDIST, EIGHT_BITS, UPSTREAM)
        contenders = [name for name in contenders if name in few]
    others = {
        "sharded": (UPSTREAM, UPSTREAM_TUNED, *TORCH),
        "replicated native": (UPSTREAM, UPSTREAM_TUNED),
        "replicated host": (UPSTREAM, UPSTREAM_TUNED),
        COMPILED: (UPSTREAM_COMPILED,),
        EIGHT_BITS: ("sharded",),
    }
    all_pairs = [(name, other) for name in others for other in others[name]]
    return [pair for pair in all_pairs if set(pair) <= set(contenders)]


def contenders(only: Sequence[str]) -> list[str]:
    """Return all contenders, or those named; PyTorch's only where it is installed.

    Raises:
        ValueError: a name is unknown.
    """
    names = [*MLXDIST, EIGHT_BITS, UPSTREAM, UPSTREAM_TUNED]
    names += [COMPILED, UPSTREAM_COMPILED]
    if importlib.util.find_spec("torch"):
        names += TORCH
    if unknown := set(only) - set(names):
        raise ValueError(
            f"no contender {unknown.pop()!r}; there are {', '.join(names)}"
        )
    return [name for name in names if not only or name in only]


class Launch(NamedTuple):
    """Contenders that run at once; `trim`: they return freed memory after a round."""

    names: list[str]
    trim: bool


def launches(
    case: Case, contenders: Sequence[str], ranks: int, available: int
) -> list[Launch]:
    """Group the contenders into launches that fit into `available` bytes.

    The two contenders of a ratio always share a launch. Memory is trimmed only where a
    pair would not fit otherwise: to allocate it again takes seconds before each round.
    """
    all_pairs = pairs(case, contenders)
    trim = any(memory(case, pair, ranks, trim=False) > available for pair in all_pairs)
    groups: list[list[str]] = []
    for pair in all_pairs:
        for group in groups:
            joined = list(dict.fromkeys([*group, *pair]))
            if memory(case, joined, ranks, trim=trim) <= available:
                group[:] = joined
                break
        else:
            groups.append(list(pair))
    return [Launch(names, trim) for names in groups or [list(contenders)]]


def memory(case: Case, names: Sequence[str], ranks: int, *, trim: bool) -> int:
    """Estimate the bytes that the jobs of these contenders take at once.

    Each job holds parameters and state all the time. During its samples it takes about
    as much again, and keeps that unless it trims or is upstream as installed.
    """
    resident = {"sharded": 1 + 2 / ranks, "torch": 4.0, "torch zero": 2 + 2 / ranks}
    working = {name: 0.0 if name in TORCH else 4.0 for name in names}
    kept = {name: 0.0 if trim or name == UPSTREAM else working[name] for name in names}
    released = max(working[name] - kept[name] for name in names)
    total = sum(resident.get(name, 3) + kept[name] for name in names) + released
    return round(ranks * case.nbytes * total)


def job(name: str, case: Case, ranks: int, folder: Path, cluster: Any = None) -> Job:
    """Return a contender's job.

    Args:
        folder: where PyTorch's ranks find each other.
        cluster: the VirtualCluster to run on; None: this machine.
    """
    if name == STREAM:
        return mpi_job(name, ranks, RANK_PROGRAMS / "stream_rank.py")
    if name in TORCH:
        return _torch_job(name, case, ranks, folder)
    arguments = (name, case.tensors, case.dtype)
    environment = (
        {} if name in (*MLXDIST, EIGHT_BITS, COMPILED) else upstream_environment()
    )
    script = RANK_PROGRAMS / "step_rank.py"
    return mpi_job(
        name, ranks, script, *arguments, cluster=cluster, environment=environment
    )


def _torch_job(name: str, case: Case, ranks: int, folder: Path) -> Job:
    script = str(RANK_PROGRAMS / "torch_rank.py")
    command = [sys.executable, script, name, case.tensors, case.dtype]
    environment = {
        "WORLD_SIZE": str(ranks),
        "TORCH_STORE": str(folder / name.replace(" ", "-")),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    commands = [["env", f"RANK={rank}", *command] for rank in range(ranks)]
    return Job(name, ranks, commands, environment)
