"""The launchers that gave this process a rank, according to its environment.

Every child of a rank inherits these variables, and is no rank. So the process that
joins notes that in the environment (`note_join`). Where two processes can't know of
each other in this way, only one of them can `claim` the rank.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from pathlib import Path
from typing import NamedTuple

from . import environment

# Descriptors of files whose locks hold the claims of this process, until it ends.
_claims: list[int] = []
_session_folders: list[Path] = []  # of the mpirun that started this process


class Launch(NamedTuple):
    """A rank that a launcher gave to this process.

    Attributes:
        launcher: its name.
        backend: the backend of MLX that joins its ranks; "" if MLX has none.
        rank: of this process, as text.
        size: how many ranks were started.
        job: identifies the job.
    """

    launcher: str
    backend: str
    rank: str
    size: int
    job: str

    def __str__(self) -> str:
        return (
            f"{self.launcher} started this process as rank {self.rank} of {self.size}"
        )


class _Names(NamedTuple):
    """The variables of a launcher. Those of rank and size must be set.

    Attributes:
        job: variables that identify the job; all must be set if `strict`.
    """

    launcher: str
    backend: str
    rank: str
    size: str
    job: tuple[str, ...]
    strict: bool = False


_HOST_FILES = ("MLX_HOSTFILE", "MLX_IBV_DEVICES")

# mpirun comes first: its job may run inside that of another launcher.
_LAUNCHERS = (
    _Names(
        "mpirun",
        "mpi",
        environment.RANK,
        environment.SIZE,
        (environment.NAMESPACE,),
    ),
    _Names("mlx.launch", "ring", "MLX_RANK", "MLX_HOSTFILE", ("MLX_HOSTFILE",)),
    _Names("mlx.launch", "jaccl", "MLX_RANK", "MLX_IBV_DEVICES", ("MLX_IBV_DEVICES",)),
    _Names("mlx.launch", "nccl", "MLX_RANK", "MLX_WORLD_SIZE", ("NCCL_PORT",)),
    _Names("mpiexec", "mpi", "PMI_RANK", "PMI_SIZE", ("PMI_ID",)),
    _Names(
        "srun",
        "mpi",
        "SLURM_PROCID",
        "SLURM_STEP_NUM_TASKS",
        ("SLURM_JOB_ID", "SLURM_STEP_ID"),
    ),
    _Names("torchrun", "", "RANK", "WORLD_SIZE", ("MASTER_ADDR", "MASTER_PORT"), True),
)


def launches() -> list[Launch]:
    """Return the ranks that launchers gave to this process, the innermost job first.

    Raises:
        ValueError: a file with hosts can't be read.
    """
    variables = environment.snapshot()
    result = []
    for names in _LAUNCHERS:
        rank, size = variables.get(names.rank), variables.get(names.size)
        job = [variables.get(name, "") for name in names.job]
        if not rank or not size or (names.strict and not all(job)):
            continue
        if names.size in _HOST_FILES:
            count = _count_hosts(names.size, size)
        elif size.isdigit():
            count = int(size)
        else:
            continue
        result.append(Launch(names.launcher, names.backend, rank, count, "/".join(job)))
    return result


def _count_hosts(name: str, path: str) -> int:
    try:
        text = Path(path).read_text()
        return len(json.loads(text)) if text.strip() else 1
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{name} is {path!r}, which has no list of hosts: {error}. Unless "
            f"mlx.launch started this process, remove {name} from the environment"
        ) from error


def note_join(launch: Launch) -> None:
    """Note for this process's children that it has joined as a launcher's rank."""
    environment.update({environment.JOINED: json.dumps([os.getpid(), *launch])})


def joined_process(launch: Launch) -> int | None:
    """Return the id of the process that noted that it has joined as this rank."""
    text = environment.get(environment.JOINED)
    if text is None:
        return None
    pid, *joined, job = json.loads(text)
    # Once a rank has joined, its children don't see the name of mpirun's job any more.
    is_same = joined == list(launch[:-1]) and launch.job in (job, "")
    return int(pid) if is_same else None


def forget() -> None:
    """Remove all names of launchers: this process is a rank of none of them."""
    names = {name for x in _LAUNCHERS for name in (x.rank, x.size)}
    environment.leave_job(names)


def claim_files(launch: Launch) -> list[str]:
    """Return each rank's file of its claim; none where they don't share this host."""
    files = [_claim_file(launch, rank) for rank in range(launch.size)]
    is_local = environment.local_size() == launch.size
    return [str(file) for file in files if file is not None and is_local]


def _claim_file(launch: Launch, rank: int | str) -> Path | None:
    folder = environment.get(environment.SERVER_FOLDER)
    if folder is None or launch.launcher != "mpirun":
        return None
    name = launch.job.rpartition("@")[2]  # the number of the job within mpirun
    return Path(folder, f"mlxdist-{name}-{rank}")


def claim(launch: Launch) -> int | None:
    """Claim a rank of mpirun for this process, until it ends.

    Returns:
        The id of another live process on this host that has claimed it; None if this
        one has it now, or if the job has no folder that this process may write to.
    """
    path = _claim_file(launch, launch.rank)
    if path is None or _claims:
        return None
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError:
        return None
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        text = os.read(descriptor, 32)
        os.close(descriptor)
        return int(text) if text.isdigit() else None
    _session_folders.append(path.parent)
    with contextlib.suppress(OSError):  # the disk is full; the lock is the claim
        os.truncate(descriptor, 0)
        os.write(descriptor, b"%d" % os.getpid())
    _claims.append(descriptor)
    return None


def remove_session(mpirun: int) -> None:
    """Remove the folder of the mpirun that started this process, which was killed.

    Args:
        mpirun: its process id, or that of its daemon on this host.
    """
    for folder in _session_folders:
        if folder.name.endswith(f".{mpirun}"):
            shutil.rmtree(folder, ignore_errors=True)
