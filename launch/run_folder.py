"""The folder of a run: one job uses it at a time, and no results are overwritten.

Every refusal ends all ranks with exit code 2.
"""

import fcntl
import os
import socket
import sys
from pathlib import Path
from typing import TextIO

import mlx.core as mx

import mlxdist

RUNS = Path("runs")
DEFAULT_NAME = "lm"


class RunFolder:
    """The folder runs/NAME of this job, locked until the job ends.

    Args:
        name: of the run; None for a new run "lm", "lm-2", and so on. With `resume` it
            is the last of these.
        resume: whether to continue the run, which must have a checkpoint. A job that
            `mlxdist run` has started again continues its run too, from the beginning
            if there is no checkpoint yet.
    """

    def __init__(self, world: mlxdist.World, name: str | None, *, resume: bool):
        continues = resume or world.restarts > 0
        self.path = RUNS / (name or default_name(world, new=not continues))
        self.checkpoints = self.path / "checkpoints"
        self.metrics = self.path / "metrics.jsonl"
        self.plot = self.path / "loss.png"
        self.lock_file: TextIO | None = None
        problem = None
        if world.is_root and self.path.is_dir():
            problem = self.lock()  # first: a run in use may have results as well
        problem = problem or self.problem(resume=resume, continues=continues)
        if world.is_root and self.lock_file is None:
            problem = problem or self.lock()
        if problem is not None:
            self.close()
        exit_if(world, problem)

    def problem(self, *, resume: bool, continues: bool) -> str | None:
        """Return why this run can't start or go on, from what is on this host."""
        if resume and not has_files(self.checkpoints):
            return (
                f"--resume: {self.path} has no checkpoint to continue from. Choose "
                "another run with --name, or start one with --checkpoint-every"
            )
        if not continues and (self.metrics.exists() or has_files(self.checkpoints)):
            return (
                f"{self.path} has the results of an earlier run. Continue it with "
                "--resume, or choose another --name"
            )
        return None

    def lock(self) -> str | None:
        """Lock the folder; return why not, if another job has it.

        The lock ends with this process, however that ends.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            # Not truncated: it names the job that has the lock.
            file = open(self.path / "lock", "a+", opener=open_no_link)  # noqa: SIM115
        except OSError as error:
            return f"{self.path}: {error.strerror}"
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            owner = file.read().strip()
            file.close()
            if not isinstance(error, BlockingIOError):
                return f"{self.path} can't be locked: {error.strerror}"
            return (
                f"{self.path} is in use by {owner}. Wait until that job ends, or "
                "choose another --name"
            )
        file.truncate(0)
        print(f"process {os.getpid()} on {socket.gethostname()}", file=file, flush=True)
        self.lock_file = file  # open, and so locked, as long as this object lives
        return None

    def close(self) -> None:
        """Unlock the folder for other jobs."""
        if self.lock_file is not None:
            self.lock_file.close()


def open_no_link(path: str, flags: int) -> int:
    """Open a file, but not through a link, which another user may have made."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def default_name(world: mlxdist.World, *, new: bool) -> str:
    """Return the name of a new run, or of the last one, the same on all ranks."""
    last = 0
    if RUNS.is_dir():
        last = max((number_of(path.name) for path in RUNS.iterdir()), default=0)
    last = mx.distributed.all_max(mx.array(last), group=world.group).item()
    number = last + 1 if new else max(last, 1)
    return DEFAULT_NAME if number == 1 else f"{DEFAULT_NAME}-{number}"


def number_of(name: str) -> int:
    """Return 1 for "lm", K for "lm-K", and 0 for other names."""
    if name == DEFAULT_NAME:
        return 1
    start, _, number = name.rpartition("-")
    return int(number) if start == DEFAULT_NAME and number.isdecimal() else 0


def has_files(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def exit_if(world: mlxdist.World, problem: object | None) -> None:
    """Exit on all ranks if any of them has a problem.

    If all have one, rank 0 alone prints its problem; otherwise each that has one does.
    """
    failed = world.mean(float(problem is not None))
    if problem and (world.is_root or failed < 1):
        print(f"train_lm.py: error: {problem}", file=sys.stderr, flush=True)
    if failed:
        world.barrier()  # mpirun ends the others as soon as one has exited
        sys.exit(2)
