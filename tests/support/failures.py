"""Runs jobs in which a rank fails, and checks how they end."""

from __future__ import annotations

import re
import socket
import time
from pathlib import Path
from subprocess import CompletedProcess

import mlx.core as mx
import mlx.optimizers as optim

import mlxdist
from mlxdist.launcher import environment
from tests.support import jobs

TIMEOUT = 3.0  # seconds; of mlxdist.init() in these jobs
# Seconds from a failure to the end of the job. mpirun takes 1.5 s to clean up, and more
# where cores are busy; a job that hangs would never end.
LIMIT = TIMEOUT + 8.0

WAYS = ["raise", "memory", "exit0", "exit3", "_exit", "interrupt", "sleep"]
WAYS += ["SIGKILL", "SIGSEGV", "SIGSTOP"]
# Of the job; 1 for the other ways.
EXIT_CODES = {"_exit": 5, "interrupt": 130, "SIGKILL": 137, "SIGSEGV": 139}
PLACES = ["forward", "exchange", "optimizer", "gather", "checkpoint", "exit"]


def run_failing_job(
    folder: Path,
    how: str,
    where: str,
    *,
    ranks: int,
    failing_rank: int,
    backend: str = "mpi",
) -> CompletedProcess[str]:
    """Run a job in which a rank fails. See failing_job.py.

    Args:
        how: one of WAYS; "none" for a job that succeeds.
        where: one of PLACES.
        backend: what carries the data.
    """
    script = Path(__file__).with_name("failing_job.py")
    return jobs.mpi_job(
        ranks,
        script,
        how,
        where,
        failing_rank,
        TIMEOUT,
        folder=folder,
        env={environment.BACKEND: backend},
        timeout=TIMEOUT + 30,
    )


def check_failure(
    folder: Path,
    how: str,
    where: str,
    *,
    ranks: int,
    failing_rank: int,
    backend: str = "mpi",
) -> tuple[str, float]:
    """Assert that a failure ends the job in time and that the rank is named.

    Returns:
        What the job printed on stderr, and the seconds from the failure to its end.
    """
    result = run_failing_job(
        folder,
        how,
        where,
        ranks=ranks,
        failing_rank=failing_rank,
        backend=backend,
    )
    end = time.time()
    output = f"{how} {where}, rank {failing_rank} of {ranks}:\n"
    output += f"{result.stdout}\n{result.stderr}"
    assert result.returncode == EXIT_CODES.get(how, 1), output
    crash = "Address already|double free|corrupted"
    assert not re.search(crash, result.stderr), output
    # Not "was in": each rank's stack has that where a job is stuck.
    name = rf"rank {failing_rank} on {socket.gethostname()}"
    ours = rf"^mlxdist: {name} failed|^  {name}: "
    mpirun = rf"process rank {failing_rank} |@1,{failing_rank}\]"
    assert re.search(f"{ours}|{mpirun}", result.stderr, re.MULTILINE), output
    start = re.search(r"failing (\S+)", result.stdout)
    assert start is not None, output
    seconds = end - float(start[1])
    assert seconds < LIMIT, f"{seconds:.1f} s\n{output}"
    if where == "checkpoint":
        check_last_checkpoint(folder / "saves")
    return result.stderr, seconds


def check_last_checkpoint(folder: Path) -> None:
    """Assert that the checkpoint before the failure is the last one, and complete."""
    parameters = {"w": mx.zeros(5000), "b": mx.zeros((7, 3))}
    optimizer = mlxdist.DistributedOptimizer(optim.Adam(0.1))
    loaded = mlxdist.load_checkpoint(folder, parameters, optimizer)
    assert (loaded.step, loaded.skipped) == (2, ())
    assert optimizer.step.item() == 3


def postmortem_folder(folder: Path) -> Path:
    """Return the folder with the ranks' records, of the only job that failed there."""
    (records,) = (folder / "mlxdist-postmortem").iterdir()
    return records
