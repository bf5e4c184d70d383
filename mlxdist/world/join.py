"""`init()` joins the world that the launcher started."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from ..comm.flight_recorder import Recorder
from ..launcher import openmpi
from . import process as runtime
from . import timeline
from .guard import Guard
from .world import Backend, World

_world: World | None = None


def init(
    backend: Backend = "mpi",
    *,
    strict: bool | None = None,
    timeout: float = 300.0,
    guard: bool = True,
) -> World:
    """Joins the world that mpirun, or another launcher, started.

    Without a launcher it is a world of one, in which everything works the same. Call
    it before other uses of `mx.distributed` or MPI. Calling it again gives the same
    world. A rank that fails afterwards ends the whole job.

    Args:
        backend: "mpi" finds Open MPI by itself. "ring" is MLX's own over TCP, started
            by `mlx.launch`; "jaccl" and "nccl" are its others.
        strict: True refuses a world of one; False accepts a world of another size than
            was launched; None refuses that.
        timeout: seconds that a rank may wait for the others in one call, or at its
            end, before the job ends with a report. Longer than the slowest thing that
            one rank does alone, such as writing a checkpoint.
        guard: False leaves failures to mpirun: no watchdog, no report. Over other
            backends than MPI there is none.

    Raises:
        RuntimeError: where the launcher started N ranks and MLX sees another number.
    """
    global _world
    if not isinstance(timeout, int | float) or not 0 < timeout < float("inf"):
        raise ValueError(
            f"timeout is {timeout!r}; it must be a number of seconds above 0"
        )
    if _world is not None:
        if _world.backend != backend:
            raise ValueError(
                f"mlxdist.init({backend!r}) after mlxdist.init({_world.backend!r}): "
                "a process joins one world; call init once"
            )
        return _world
    mpi = runtime.prepare_mpi() if backend == "mpi" else None
    group = _join(backend)
    launched = runtime.launched_size(backend)
    if strict is not False and launched is not None and launched != group.size():
        raise RuntimeError(
            f"the launcher started {launched} ranks, but MLX sees {group.size()}. "
            + _SIZE_REMEDY[backend]
        )
    if strict and group.size() == 1:
        raise RuntimeError(
            "a world of one, and strict=True: start the program with "
            "`mlxdist run -n 2 script.py` or `mpirun -n 2 python script.py`"
        )
    runtime.keep_freed_memory()
    if mpi is None or not mpi.Is_initialized():
        _world = World(group, backend)
        return _world
    # mpi4py makes errors return, and MLX ignores what they return.
    mpi.COMM_WORLD.Set_errhandler(mpi.ERRORS_ARE_FATAL)
    _world = World(group, backend, mpi.COMM_WORLD.Dup(), Recorder())
    if guard:
        _install_guard(_world, mpi, timeout)
    if path := os.environ.get("MLXDIST_TIMELINE"):
        timeline.Timeline(_world.recorder, mpi.COMM_WORLD.Dup(), _world.host, path)
    return _world


def current() -> World:
    """The world that was joined; joins it over MPI where none was."""
    return init() if _world is None else _world


_SIZE_REMEDY = {
    "mpi": (
        "Either mpirun belongs to another Open MPI than the one that mpi4py loads (use "
        "`mlxdist run`, or the mpirun beside this Python), or something called "
        f"mx.distributed.init() before mlxdist.init(). {openmpi.INSTALL_HINT}"
    ),
    "ring": "Check MLX_HOSTFILE, and that nothing called mx.distributed.init() before.",
}


def _join(backend: Backend) -> Any:
    if not mx.distributed.is_available(backend):
        if backend == "mpi":
            return mx.distributed.init()
        raise RuntimeError(
            f"this MLX has no {backend!r} backend; mlxdist.init('mpi') works anywhere"
        )
    try:
        group = mx.distributed.init(strict=True, backend=backend)
    except RuntimeError:
        # MLX refuses a world of one when it is strict. Over MPI init() goes on to
        # compare sizes; elsewhere MLX's own reason is better than that comparison.
        if backend != "mpi" and (runtime.launched_size(backend) or 1) > 1:
            raise
        group = mx.distributed.init(backend=backend)
    runtime.keep(group)
    return group


def _install_guard(world: World, mpi: Any, timeout: float) -> None:
    started = np.array([time.time_ns() // 10**9, os.getpid()], np.uint64)
    when, pid = world.control.all_gather_words(started)[0]
    name = time.strftime("%Y%m%d-%H%M%S", time.localtime(int(when)))
    folder = Path(os.environ.get("MLXDIST_POSTMORTEM", "mlxdist-postmortem"))
    Guard(
        mpi,
        world.rank,
        world.recorder,
        timeout=timeout,
        folder=(folder / f"{name}-{pid}").absolute(),
    ).install()
