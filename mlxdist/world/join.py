"""`init()`: join the world that the launcher started."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from ..comm.flight_recorder import Recorder
from ..launcher import environment, openmpi
from .finalize import keep_alive
from .guard import Guard
from .process import keep_freed_memory, prepare_mpi, world_communicator
from .timeline import Timeline
from .world import Backend, World

if TYPE_CHECKING:
    from mpi4py import MPI

_world: World | None = None

_SIZE_REMEDY = {
    "mpi": (
        "Either mpirun belongs to another Open MPI than the one that mpi4py loads (use "
        "`mlxdist run`, or the mpirun in the folder of this Python), or something "
        "called mx.distributed.init() before mlxdist.init(). "
        f"{openmpi.INSTALL_HINT}"
    ),
    "ring": "Check MLX_HOSTFILE, and that nothing called mx.distributed.init() before.",
}


def init(
    backend: Backend = "mpi",
    *,
    strict: bool | None = None,
    timeout: float = 300.0,
    guard: bool = True,
) -> World:
    """Join the world that mpirun or another launcher started.

    Without a launcher it is a world of one rank. Call it before any other use of
    `mx.distributed` or MPI. Further calls return the same world.

    It changes the process. MPI_Finalize runs at the very end of it. On Linux, glibc's
    malloc keeps freed memory (MLXDIST_KEEP_MEMORY=0 disables that). With `guard`, over
    MPI: an exception, SIGTERM, a hang or an early exit of one rank ends the whole job;
    `faulthandler` is enabled; a rank that finishes waits for the others; and a forked
    child exits through `os._exit`, past the C library's exit handlers.

    Args:
        backend: "mpi" finds Open MPI by itself. "ring" is MLX's backend over TCP,
            started by `mlx.launch`; "jaccl" and "nccl" are MLX's others.
        strict: True rejects a world of one rank; False accepts a world of another size
            than was launched; None rejects that.
        timeout: seconds that a rank may wait for others, in one call or at its end,
            before the job ends with a report. Must exceed the longest work that one
            rank does alone, such as writing a checkpoint.
        guard: False leaves failures to mpirun.

    Raises:
        RuntimeError: the launcher started N ranks and MLX sees another number; MPI is
            not Open MPI or was started before; there is no such backend.
        ValueError: `timeout` is no positive number, or a world of another backend was
            joined before.
    """
    global _world
    if not isinstance(timeout, int | float) or not 0 < timeout < float("inf"):
        raise ValueError(f"timeout is {timeout!r}; wanted a number of seconds above 0")
    if _world is None:
        _world = _join(backend, strict=strict, timeout=timeout, guard=guard)
    elif _world.backend != backend:
        raise ValueError(
            f"mlxdist.init({backend!r}) after mlxdist.init({_world.backend!r}): "
            "a process joins one world; call init once"
        )
    return _world


def current() -> World:
    """Return the world of this process; join one over MPI if there is none yet."""
    return init() if _world is None else _world


def _join(
    backend: Backend, *, strict: bool | None, timeout: float, guard: bool
) -> World:
    has_mpi = backend == "mpi" and prepare_mpi()
    group = _make_group(backend)
    _check_size(group.size(), backend, strict)
    keep_freed_memory()
    comm = world_communicator() if has_mpi else None
    if comm is None:
        return World(group, backend)
    world = World(group, backend, comm.Dup(), Recorder())
    if guard and world.size > 1:
        _install_guard(world, comm, timeout)
    if path := environment.timeline_path():
        Timeline(world.recorder, comm.Dup(), world.host, path)
    return world


def _make_group(backend: Backend) -> mx.distributed.Group:
    """Return MLX's group of all ranks, which lives as long as the process."""
    if not mx.distributed.is_available(backend):
        if backend == "mpi":
            return mx.distributed.init()
        raise RuntimeError(
            f"this MLX has no {backend!r} backend; mlxdist.init('mpi') works everywhere"
        )
    try:
        group = mx.distributed.init(strict=True, backend=backend)
    except RuntimeError:
        # A strict MLX rejects a world of one. Over MPI, _check_size explains it better;
        # with other backends MLX's message is the better one.
        if backend != "mpi" and (environment.launched_size(backend) or 1) > 1:
            raise
        group = mx.distributed.init(backend=backend)
    keep_alive(group)
    return group


def _check_size(size: int, backend: Backend, strict: bool | None) -> None:
    launched = environment.launched_size(backend)
    if strict is not False and launched is not None and launched != size:
        raise RuntimeError(
            f"the launcher started {launched} ranks, but MLX sees {size}. "
            + _SIZE_REMEDY[backend]
        )
    if strict and size == 1:
        raise RuntimeError(
            "a world of one rank, and strict=True: start the program with "
            "`mlxdist run -n 2 script.py` or `mpirun -n 2 python script.py`"
        )


def _install_guard(world: World, comm: MPI.Intracomm, timeout: float) -> None:
    # Rank 0's time and process id name the folder of the records on all ranks.
    local = np.array([time.time_ns() // 10**9, os.getpid()], np.uint64)
    start, pid = world.control.all_gather_words(local)[0]
    name = time.strftime("%Y%m%d-%H%M%S", time.localtime(int(start)))
    folder = (environment.postmortem_folder() / f"{name}-{pid}").absolute()
    Guard(comm, world.recorder, timeout=timeout, folder=folder).install()
