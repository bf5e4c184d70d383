"""Training under a memory limit of the kernel for each rank, which kills the others."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable

from ranks.memory_modes import MODES, predict
from ranks.shapes import shapes_of

from mlxdist.launcher.environment import without_mpi

from .environment import BENCHMARKS, RANK_PROGRAMS, ROOT
from .jobs import mpirun
from .record import Result

sys.path.insert(0, os.fspath(ROOT))
from tests.support.memory_group import memory_groups, problem

__all__ = ["CASES", "DTYPE", "measure_under", "problem"]

DTYPE, STEPS = "bfloat16", 2
PROCESS = 64_000_000  # bytes of the bare process, about
CASES = (  # mode, size (1: too large for a single rank), ranks
    ("replicated update", 1, 1),
    ("replicated update", 1, 2),
    ("sharded minimize", 1, 2),
    ("sharded minimize", 2, 2),
    ("minimize, 8-bit state", 2, 2),
)


def measure_under(limit: int, advance: Callable[[str], None]) -> list[Result]:
    """Train models under a limit, and return which the kernel has killed.

    Args:
        limit: bytes of each rank, Python and MPI included.
        advance: called after each job with its name.
    """
    millions = smallest_that_exceeds(limit)
    results = []
    for mode, times, ranks in CASES:
        tensors = f"{times * millions}M"
        results.append(_train(mode, tensors, ranks, limit))
        advance(f"{mode}, {tensors}, {ranks} ranks")
    return results


def smallest_that_exceeds(limit: int) -> int:
    """Return the millions of parameters that need 1.05 of a limit on a single rank."""
    return next(
        millions
        for millions in itertools.count(1)
        if _predicted("replicated update", f"{millions}M", 1) > 1.05 * limit
    )


def _predicted(mode: str, tensors: str, ranks: int) -> int:
    return predict(MODES[mode], shapes_of(tensors), DTYPE, ranks, PROCESS).total


def _train(mode: str, tensors: str, ranks: int, limit: int) -> Result:
    """Take a few steps in a job.

    Raises:
        RuntimeError: it failed for another reason than the limit, with its output.
    """
    script = RANK_PROGRAMS / "limit_rank.py"
    program = [sys.executable, os.fspath(script), mode, tensors, DTYPE, str(STEPS)]
    paths = f"{ROOT}{os.pathsep}{BENCHMARKS}"
    environment = {**without_mpi(os.environ), "PYTHONPATH": paths}
    environment["OMP_NUM_THREADS"] = "1"
    with memory_groups(ranks, limit) as groups:
        command = [*mpirun(ranks), *groups.command(program)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        kills, peaks = groups.kills, groups.peaks
    if done.returncode and not any(kills):
        raise RuntimeError(f"{mode}, {tensors}: {done.stdout}{done.stderr}")
    return {
        "mode": mode,
        "tensors": tensors,
        "ranks": ranks,
        "exit_code": done.returncode,
        "killed": sum(kills),
        "peaks": peaks,
        "predicted": _predicted(mode, tensors, ranks),
    }
