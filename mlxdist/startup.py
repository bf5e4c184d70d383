"""`init()` joins the world that the launcher started."""

from __future__ import annotations

import socket
from typing import Any

import mlx.core as mx

from . import runtime
from .guard import Guard
from .world import Backend, World

_world: World | None = None


def init(
    backend: Backend = "mpi", *, strict: bool | None = None, timeout: float = 300.0
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
        timeout: seconds that a rank at its end waits for the others.

    Raises:
        RuntimeError: where the launcher started N ranks and MLX sees another number.
    """
    global _world
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
    _world = _make_world(group, backend, mpi, timeout)
    return _world


def current() -> World:
    """The world that was joined; joins it over MPI where none was."""
    return init() if _world is None else _world


_SIZE_REMEDY = {
    "mpi": (
        "Either mpirun belongs to another Open MPI than the one that mpi4py loads (use "
        "`mlxdist run`, or the mpirun beside this Python), or something called "
        f"mx.distributed.init() before mlxdist.init(). {runtime.INSTALL_HINT}"
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


def _make_world(group: Any, backend: Backend, mpi: Any, timeout: float) -> World:
    if mpi is None or not mpi.Is_initialized():
        return World(group, backend)
    # mpi4py makes errors return, and MLX ignores what they return.
    mpi.COMM_WORLD.Set_errhandler(mpi.ERRORS_ARE_FATAL)
    guard = Guard(
        mpi,
        mpi.COMM_WORLD.Dup(),
        rank=group.rank(),
        host=socket.gethostname(),
        timeout=timeout,
    )
    guard.install()
    return World(group, backend, mpi.COMM_WORLD.Dup())
