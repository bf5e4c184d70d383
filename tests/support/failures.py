"""Runs jobs in which a rank fails, and checks how they end."""

from __future__ import annotations

import re
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess

import mlx.core as mx
import mlx.optimizers as optim

import mlxdist
from mlxdist.launcher import environment
from tests.support import jobs

TIMEOUT = 3.0  # seconds; of mlxdist.init() in these jobs
# Seconds from a failure to the end of the job. mpirun takes 1.5 s to clean up, and many
# times that where cores are busy; a job that hangs would never end.
LIMIT = TIMEOUT + 50.0

WAYS = ["raise", "memory", "exit0", "exit3", "_exit", "interrupt", "sleep"]
WAYS += ["SIGKILL", "SIGSEGV", "SIGSTOP"]
# Of the job; 1 for the other ways.
EXIT_CODES = {"_exit": 5, "interrupt": 130, "SIGKILL": 137, "SIGSEGV": 139}
PLACES = ["forward", "exchange", "optimizer", "gather", "checkpoint", "exit"]


@dataclass(frozen=True)
class FailingJob:
    """A job in which a rank fails.

    Attributes:
        how: one of WAYS; "none" for a job that succeeds.
        where: one of PLACES.
        failing_rank: by default the last one.
        backend: what carries the data.
    """

    how: str
    where: str
    ranks: int
    failing_rank: int = -1
    backend: str = "mpi"

    @property
    def rank(self) -> int:
        return self.failing_rank % self.ranks

    def run(self, folder: Path) -> CompletedProcess[str]:
        """Run the job. See failing_job.py."""
        script = Path(__file__).with_name("failing_job.py")
        return jobs.mpi_job(
            self.ranks,
            script,
            *(self.how, self.where, self.rank, TIMEOUT),
            folder=folder,
            env={environment.BACKEND: self.backend},
        )


def check_failure(folder: Path, job: FailingJob) -> tuple[str, float]:
    """Assert that a failure ends the job in time and that the rank is named.

    Returns:
        What the job printed on stderr, and the seconds from the failure to its end.
    """
    result = job.run(folder)
    end = time.time()
    output = f"{job}:\n{result.stdout}\n{result.stderr}"
    assert result.returncode == EXIT_CODES.get(job.how, 1), output
    crash = "Address already|double free|corrupted"
    assert not re.search(crash, result.stderr), output
    # Not "was in": each rank's stack has that where a job is stuck.
    name = rf"rank {job.rank} on {socket.gethostname()}"
    ours = rf"^mlxdist: {name} failed|^  {name}: "
    mpirun = rf"process rank {job.rank} |@1,{job.rank}\]"
    assert re.search(f"{ours}|{mpirun}", result.stderr, re.MULTILINE), output
    start = re.search(r"failing (\S+)", result.stdout)
    assert start is not None, output
    seconds = end - float(start[1])
    assert seconds < LIMIT, f"{seconds:.1f} s\n{output}"
    if job.where == "checkpoint":
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
