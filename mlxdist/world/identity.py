"""Which rank of which job this process is: its launcher's, or none."""

from __future__ import annotations

import multiprocessing
import os

from ..launcher import launches, openmpi
from ..launcher.launches import Launch

_SIZE_REMEDY = {
    "mpirun": (
        "Either mpirun belongs to another Open MPI than the one that mpi4py loads (use "
        "`mlxdist run`, or the mpirun in the folder of this Python), or something "
        "called mx.distributed.init() before mlxdist.init(), and MLX joined without "
        f"Open MPI. {openmpi.INSTALL_HINT}"
    ),
    "mlx.launch": (
        "Check that MLX_RANK and the hosts are those of this job, and that nothing "
        "called mx.distributed.init() before."
    ),
}
_OTHER_REMEDY = (
    "Open MPI can't join what {launcher} started: start the program with `mlxdist run "
    "-n {size} script.py`, with mpirun, or with `srun --mpi=pmix` where that works."
)


def find_launch(backend: str | None, *, strict: bool, rejoins: bool) -> Launch | None:
    """Return the rank that this process may join as; None for a world of one.

    Args:
        backend: that the user asked for, None for any.
        strict: refuse a job whose ranks the backend can't join.
        rejoins: whether this process had joined and has closed its world.

    Raises:
        RuntimeError: another process has joined as this rank; MLX can't join what the
            launcher started, or not over this backend.
    """
    jobs = [job for job in launches.launches() if job.size > 1 or job.backend == "mpi"]
    if not rejoins and any(map(_is_child, jobs)):
        launches.forget()
        return None
    matching = [job for job in jobs if backend in (None, job.backend) and job.backend]
    matching += [
        job for job in jobs if job.backend == "mpi"
    ]  # which sets up the others
    if matching:
        return matching[0]
    if jobs and jobs[0].size > 1 and strict:
        raise RuntimeError(_backend_error(jobs[0], backend))
    return None


def check_size(size: int, launch: Launch | None) -> None:
    """Raise if the launcher started another number of ranks than MLX sees."""
    if launch is not None and launch.size != size:
        remedy = _SIZE_REMEDY.get(launch.launcher, _OTHER_REMEDY)
        raise RuntimeError(
            f"the launcher started {launch.size} ranks, but MLX sees {size}. "
            + remedy.format(launcher=launch.launcher, size=launch.size)
        )


def _is_child(launch: Launch) -> bool:
    """Return whether another process is this rank, which has started this one."""
    joined = launches.joined_process(launch)
    if joined == os.getpid():
        raise RuntimeError(
            f"{launch} and joined. It has replaced itself by another program (exec) "
            "since, which can't join again; start that one as a process of its own"
        )
    if joined is not None or (launch.launcher == "mpirun" and not launch.job):
        return True  # see `environment.hide_mpirun`
    claimed = launches.claim(launch) if launch.launcher == "mpirun" else None
    if claimed is None:
        return False
    if claimed == os.getppid() or multiprocessing.parent_process() is not None:
        return True
    raise RuntimeError(
        f"process {claimed} has joined as rank {launch.rank} of this job, and a rank "
        "is one process. If this one has started it: call mlxdist.init() before a rank "
        "starts other programs, which get a world of one then"
    )


def _backend_error(launch: Launch, backend: str | None) -> str:
    if not launch.backend:
        return (
            f"{launch}, and MLX can't join its ranks: each would train alone. Start "
            f"the program with `mlxdist run -n {launch.size} script.py`"
        )
    return (
        f"{launch} over {launch.backend!r}, and mlxdist.init({backend!r}) can't join "
        f"them: each would train alone. Call mlxdist.init(), or "
        f"mlxdist.init({launch.backend!r})"
    )
