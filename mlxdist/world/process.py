"""MPI start-up and memory allocator settings of this process.

MLX and mpi4py each load a libmpi of their own choice. Both must use the same one. MLX
must start it, with MPI_THREAD_MULTIPLE: MLX runs collectives on a thread of its own
while mpi4py is called from the main thread.
"""

from __future__ import annotations

import ctypes
import platform
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from ..arrays import device
from ..launcher import cores, environment, kernel_folder
from ..launcher.openmpi import INSTALL_HINT, find_libmpi
from .finalize import finalize_at_exit
from .hooks import log

if TYPE_CHECKING:
    from mpi4py import MPI

# Defaults of Open MPI's parameters. A user's own values win: those of a parameter file
# too, since mpirun passes them on in the environment.
_MCA_PARAMETERS = {
    # The wheel of Open MPI searches for a libfabric network for a second at each start.
    # Only one-sided operations would use it through this component.
    "btl": "^ofi",
    # With its defaults, TCP sends in one direction at a time, and buffers so little
    # that the network idles whenever Python computes.
    "btl_tcp_flags": "1",  # send only
    "btl_tcp_max_send_size": str(2**20),  # bytes
}

# A rank that waits inside MPI polls, which is the fastest where each has a core and
# messages go through memory. Elsewhere it naps between two looks: polling would take
# the core from the backward pass, or from another rank.
_NAP_PARAMETERS = {
    "mpi_yield_when_idle": "1",
    "threads_pthreads_yield_strategy": "nanosleep",
    "threads_pthreads_nanosleep_time": "50000",  # nanoseconds
}

_prepared: list[str] = []  # the libmpi that this process uses

# Bytes of freed memory that MLX keeps from malloc, on a CPU. By default it keeps
# 32 MiB, which malloc could have used for an array of another size.
_MLX_CACHE = 4 * 2**20
_MLX_CACHE_BEFORE = 32 * 2**20

# Options of glibc's mallopt.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def prepare_mpi() -> bool:
    """Make MLX load mpi4py's libmpi, and MPI end with the process.

    Returns:
        Whether there is an MPI that MLX can start. It is not started yet.

    Raises:
        RuntimeError: MPI was started already, or it is not Open MPI.
    """
    library = find_libmpi()
    if library is None:
        return False
    from mpi4py import MPI

    if _prepared:
        return True
    if MPI.Is_initialized() and not _started_by_mlx():
        raise RuntimeError(
            "MPI was started before mlxdist.init(), and MLX can't join it then. Call "
            "mlxdist.init() first, or import mlxdist before mpi4py."
        )
    if not MPI.Get_library_version().startswith("Open MPI"):
        raise RuntimeError(
            f"mpi4py loaded {library}, which is not Open MPI, and MLX works with "
            f"Open MPI only. {INSTALL_HINT}"
        )
    naps = waits_with_naps(
        environment.world_size(), environment.local_size(), cores.usable_cores()
    )
    parameters = _MCA_PARAMETERS | (_NAP_PARAMETERS if naps else {})
    environment.use_libmpi(library, parameters=parameters)
    if not mx.distributed.is_available("mpi"):
        return False  # MLX has looked for a libmpi before, and will start none
    finalize_at_exit(library)
    _prepared.append(library)
    return True


def waits_with_naps(ranks: int, ranks_on_host: int, usable_cores: int) -> bool:
    """Return whether ranks nap while they wait inside MPI, rather than poll.

    They do where there are several hosts, or more ranks on this one than cores.
    """
    return ranks_on_host < ranks or ranks_on_host > usable_cores


def _started_by_mlx() -> bool:
    """Return whether MLX has started MPI itself, and so has joined all ranks."""
    from mpi4py import MPI

    size = MPI.COMM_WORLD.Get_size()
    return size > 1 and mx.distributed.init(backend="mpi").size() == size


def world_communicator() -> MPI.Intracomm | None:
    """Return MPI's COMM_WORLD, None if MPI was not started.

    Its errors end the job. mpi4py makes them return codes, which MLX ignores.

    Raises:
        RuntimeError: MPI does not provide MPI_THREAD_MULTIPLE.
    """
    from mpi4py import MPI

    if not MPI.Is_initialized():
        return None
    if MPI.Query_thread() < environment.THREAD_MULTIPLE:
        raise RuntimeError(
            f"MPI runs with thread level {MPI.Query_thread()}, and mlxdist needs "
            f"{environment.THREAD_MULTIPLE}, MPI_THREAD_MULTIPLE. Remove "
            f"{environment.THREAD_LEVEL} from the environment, and call mlxdist.init() "
            "before mx.distributed.init()"
        )
    MPI.COMM_WORLD.Set_errhandler(MPI.ERRORS_ARE_FATAL)
    return MPI.COMM_WORLD


def ranks_on_host(comm: MPI.Comm) -> tuple[int, bool]:
    """Return how many ranks share this host, and whether this is the first one."""
    from mpi4py import MPI

    on_host = comm.Split_type(MPI.COMM_TYPE_SHARED)
    result = on_host.Get_size(), on_host.Get_rank() == 0
    on_host.Free()
    return result


def on_any_rank(comm: MPI.Comm, *, condition: bool) -> bool:
    """Return whether a condition holds on one rank or more, on all ranks."""
    every = np.zeros(comm.Get_size(), np.uint8)
    comm.Allgather(np.array([condition], np.uint8), every)
    return bool(every.any())


def protect_kernels() -> None:
    """Have MLX load compiled kernels from a folder of this user's only.

    Raises:
        PermissionError: there is none; the message has the remedy.
    """
    warning = kernel_folder.protect()
    if warning and environment.local_rank() == 0:
        log(f"mlxdist: {warning}\n")


def keep_freed_memory() -> bool:
    """Keep glibc from returning large freed blocks to the kernel.

    MLX on Linux allocates with malloc. A new block costs a page fault for every 4 KiB.
    The setting is process-wide. MLXDIST_KEEP_MEMORY=0 disables it.

    Returns:
        Whether it was set: not on macOS, where MLX has a cache of its own, not where
        the C library is not glibc, and not where it is disabled.
    """
    if platform.system() != "Linux" or not environment.is_enabled(
        environment.KEEP_MEMORY
    ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # musl
        return False
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_M_TOP_PAD, 64 * 2**20)
    _limit_cache()
    return True


def _limit_cache() -> None:
    """Have MLX give freed memory to malloc, which keeps it, too.

    A limit that a user has set stays, and so does an accelerator's.
    """
    if mx.metal.is_available() or mx.cuda.is_available():
        return
    before = mx.set_cache_limit(_MLX_CACHE)
    if before != _MLX_CACHE_BEFORE:
        mx.set_cache_limit(before)


def return_freed_memory() -> None:
    """Return the memory that is free now to the kernel: MLX's cache, and malloc's."""
    device.clear_cache()
    if platform.system() == "Linux" and hasattr(ctypes.CDLL(None), "malloc_trim"):
        ctypes.CDLL(None).malloc_trim(0)
