"""`init()`: join the world that the launcher started.

It changes the process:

- MPI_Finalize runs at the very end of it, and not in forked children.
- On Linux, glibc's malloc keeps freed memory. MLXDIST_KEEP_MEMORY=0 disables that.
- On Metal, MLX keeps buffers resident (`mx.set_wired_limit`), up to a limit that leaves
  8 GiB or 35% of a Mac's memory, unless one was set. MLXDIST_WIRED=0 disables that.
- Where MLX's folder of compiled kernels, `mlx` in the folder for temporary files, is
  another user's or open to others, TMPDIR changes for MLX and for processes that are
  started from now on. `os.environ` and Python's `tempfile` keep it.
- On several ranks, each seeds MLX's random numbers differently, unless they were seeded
  before. MLX itself seeds them with the time, which ranks that start together share.
  This is for the thread that calls `init`: MLX has a seed for each thread.
- Over MPI, the environment no longer says how to join the job, so that processes that
  are started from now on, and that start MPI, are worlds of one. Rank and size stay.
- With `guard`, on several ranks over MPI: an exception, SIGTERM, a hang or an early
  exit of one rank ends the whole job, `faulthandler` is enabled, and a rank that
  finishes waits for the others. Your own exception hook is called first, your own
  handler of SIGTERM replaces that of mlxdist, and your file of `faulthandler` is kept.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import closing
from typing import TYPE_CHECKING, cast

import mlx.core as mx
import numpy as np

from ..comm.agreement import difference
from ..launcher import environment, launches
from ..launcher.data_plane import DataPlane, check_backend, data_plane_of
from ..launcher.launches import Launch
from ..version import __version__
from .data_plane import connect, control_transport
from .deadline import join_in_time
from .finalize import keep_alive
from .groups import Backend
from .guard import Guard
from .identity import check_size, find_launch
from .metal_memory import wire_where_metal_computes
from .process import (
    keep_freed_memory,
    prepare_mpi,
    protect_kernels,
    ranks_on_host,
    world_communicator,
)
from .shared_memory import unlink_segments
from .timeline import Timeline
from .world import World

if TYPE_CHECKING:
    from mpi4py import MPI

_world: World | None = None
_joining = threading.Lock()
_options: dict[str, object] = {}
_DEFAULTS: dict[str, object] = {"timeout": 300.0, "guard": True}
_SETTINGS_BYTES = 128  # of the message in which ranks compare their settings
_LONGEST_RUN = 1000 * 86400 * 365  # milliseconds; a seed of more is not the start time


def init(
    backend: Backend | None = None,
    *,
    strict: bool | None = None,
    timeout: float = 300.0,
    guard: bool = True,
) -> World:
    """Join the world that mpirun or another launcher started.

    Without a launcher it is a world of one rank, and so it is in a process that a rank
    has started, such as a data loader's. So call it before the program starts others,
    and before other uses of `mx.distributed` or MPI. Further calls return the same
    world, until it is closed. The module's docstring has what changes in the process.

    Args:
        backend: what carries gradients and parameters. "mpi" finds Open MPI by itself;
            "ring" is MLX's backend over TCP, "jaccl" that over RDMA, "nccl" NVIDIA's.
            Where MPI started the ranks, it carries the rest: see `data_plane`. None
            takes what a host file, MLXDIST_BACKEND or `mlx.launch` names, else MPI.
        strict: True rejects a world of one rank; False accepts a world of another size
            than was launched; None rejects that.
        timeout: seconds that a rank waits for others of which none makes progress,
            before the job ends with a report. A rank that works alone, as in a long
            evaluation, is reported now and then and ends nothing. It is also how long
            a rank waits here for ranks that don't call `init`, but at least 60 s.
        guard: False leaves failures to mpirun.

    Raises:
        RuntimeError: MLX can't join the ranks that the launcher started, or not all;
            another process has joined as this rank; the ranks run different versions of
            mlxdist, or pass other arguments. The message has the remedy.
        PermissionError: MLX has no folder for compiled kernels that is this user's.
        ValueError: an argument is invalid, or not that of an earlier call.
        MismatchError: the backend can't be set up on one of the ranks.
    """
    global _world
    _check_arguments(backend, timeout)
    options: dict[str, object] = {"timeout": timeout, "guard": guard}
    with _joining:
        if _world is None or _world.is_closed:
            _world = _join(backend, strict, timeout, guard, rejoins=_world is not None)
            _options.update(options)
    _check_repeated(_world, backend, options)
    _check_strict(_world.size, strict)
    return _world


def current() -> World:
    """Return the world of this process; join one if there is none yet."""
    return init() if _world is None or _world.is_closed else _world


def _check_repeated(
    world: World, backend: Backend | None, options: dict[str, object]
) -> None:
    """Refuse what a world that was joined before can't give."""
    world.check_usable()
    if backend not in (None, world.backend):
        raise ValueError(
            f"mlxdist.init({backend!r}) after mlxdist.init({world.backend!r}): "
            "a process joins one world; call init once"
        )
    for name, value in options.items():
        if value not in (_options[name], _DEFAULTS[name]):
            raise ValueError(
                f"mlxdist.init({name}={value!r}), but the world was joined with "
                f"{name}={_options[name]!r}; pass it to the first call of init"
            )


def _check_arguments(backend: Backend | None, timeout: float) -> None:
    if backend is not None:
        check_backend(backend, "backend")
    is_number = isinstance(timeout, int | float | np.integer | np.floating)
    if not is_number or not 0 < timeout < float("inf"):
        raise ValueError(f"timeout is {timeout!r}; wanted a number of seconds above 0")


def _join(
    backend: Backend | None,
    strict: bool | None,
    timeout: float,
    guard: bool,
    *,
    rejoins: bool,
) -> World:
    launch = find_launch(backend, strict=strict is not False, rejoins=rejoins)
    protect_kernels()
    plane = data_plane_of(environment.snapshot())
    if backend is None and launch is not None:
        named = plane.backend if launch.backend == "mpi" else None
        backend = cast(Backend, named or launch.backend)
    with join_in_time(launch, timeout):
        return _join_launch(launch, backend or "mpi", plane, strict, timeout, guard)


def _join_launch(
    launch: Launch | None,
    backend: Backend,
    plane: DataPlane,
    strict: bool | None,
    timeout: float,
    guard: bool,
) -> World:
    is_by_mpi = backend == "mpi" or (launch is not None and launch.backend == "mpi")
    has_mpi = is_by_mpi and prepare_mpi()
    group = _make_group("mpi" if is_by_mpi else backend, launch)
    if strict is not False:
        check_size(group.size(), launch)
    _check_strict(group.size(), strict)
    keep_freed_memory()
    wire_where_metal_computes()
    comm = world_communicator() if has_mpi else None
    path = environment.timeline_path()
    if group.size() > 1:
        control = "MPI" if comm is not None else "MLX"
        settings = f"guard={guard}, timeline={bool(path)}, {backend} over {control}"
        _compare_settings(group, settings)
    # All ranks have joined, and so have mapped them. MPI leaves that of a world of one.
    unlink_segments()
    world = _make_world(group, backend, comm, plane)
    if launch is not None:
        launches.note_join(launch)
    if comm is not None:
        environment.hide_mpirun()
    if world.size == 1:
        comm = None  # there is no other rank to guard, or to collect a timeline from
    else:
        _seed_unless_seeded()
    if comm is not None and guard:
        _install_guard(world, comm, timeout)
    if path and (comm is not None or world.size == 1):
        timeline = Timeline(world, None if comm is None else comm.Dup(), path)
        world.at_close.callback(timeline.close)
    return world


def _make_world(
    group: mx.distributed.Group,
    backend: Backend,
    comm: MPI.Intracomm | None,
    plane: DataPlane,
) -> World:
    """Return the world of all ranks, over another backend than MPI where it is asked.

    Args:
        group: of all ranks; over MPI if that started them.
    """
    if comm is None:
        return World(group, backend)
    if backend == "mpi" or group.size() == 1:
        return World(group, backend, comm.Dup())
    with closing(control_transport(comm.Dup())) as control:
        one_host = ranks_on_host(comm)[0] == group.size()
        data_group = connect(backend, control, plane, one_host=one_host)
    keep_alive(data_group)
    return World(data_group, backend, comm.Dup(), mpi_group=group)


def _make_group(backend: Backend, launch: Launch | None) -> mx.distributed.Group:
    """Return MLX's group of all ranks, which lives as long as the process."""
    if backend != "mpi" and not mx.distributed.is_available(backend):
        raise RuntimeError(
            f"this MLX has no {backend!r} backend; mlxdist.init('mpi') works everywhere"
        )
    try:
        group = mx.distributed.init(strict=True, backend=backend)
    except RuntimeError:
        # A strict MLX rejects a world of one, and a missing MPI. Over MPI, check_size
        # explains it better; with other backends MLX's message is the better one.
        if backend != "mpi" and launch is not None and launch.size > 1:
            raise
        group = mx.distributed.init(backend=backend)
    keep_alive(group)
    return group


def _check_strict(size: int, strict: bool | None) -> None:
    if strict and size == 1:
        raise RuntimeError(
            "a world of one rank, and strict=True: start the program with "
            "`mlxdist run -n 2 script.py` or `mpirun -n 2 python script.py`"
        )


def _seed_unless_seeded() -> None:
    """Seed MLX's random numbers, which differ between ranks then.

    MLX's own seed is the time in milliseconds, and ranks start at the same time. The
    state of its generator shows whether that seed is still in place.
    """
    state: list[mx.array] = mx.random.state  # type: ignore[assignment]
    high, low = map(int, np.array(state[0]))
    age = time.time() * 1000 - ((high << 32) + low)
    if 0 <= age <= _LONGEST_RUN:
        mx.random.seed(int.from_bytes(os.urandom(8), "little"))


def _compare_settings(group: mx.distributed.Group, settings: str) -> None:
    """Refuse ranks that would not communicate alike.

    The length of this message is the same in all versions of mlxdist. It goes over
    MLX's group: a rank whose mpi4py found no MPI compares calls over MLX, not MPI.
    """
    text = f"mlxdist {__version__}, {settings}"
    data = text.encode().ljust(_SETTINGS_BYTES)[:_SETTINGS_BYTES]
    local = mx.array(np.frombuffer(data, np.uint8))
    mx.eval(local)
    gathered = np.array(mx.distributed.all_gather(local, group=group))
    rows = gathered.reshape(group.size(), -1)
    if (rows != rows[0]).any():
        texts = [row.tobytes().decode(errors="replace").strip() for row in rows]
        raise RuntimeError(
            "the ranks can't work together; install one version of mlxdist on all "
            f"hosts, and call init alike:\n{difference(texts)}"
        )


def _install_guard(world: World, comm: MPI.Intracomm, timeout: float) -> None:
    # Rank 0's time and process id name the folder of the records on all ranks.
    local = np.array([time.time_ns() // 10**9, os.getpid()], np.uint64)
    start, pid = world.control.all_gather_words(local)[0]
    name = time.strftime("%Y%m%d-%H%M%S", time.localtime(int(start)))
    folder = (environment.postmortem_folder() / f"{name}-{pid}").absolute()
    guard = Guard(comm, world.recorder, timeout=timeout, folder=folder)
    guard.install()
    world.at_close.callback(guard.close)
