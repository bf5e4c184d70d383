"""Find MPI and prepare the process for it. The one place that touches the environment.

MLX and mpi4py each load a libmpi of their own choosing. Both have to use the same
one, MLX has to start it, and it has to start with threads allowed: MLX runs its
collectives on a stream thread while mpi4py is called from the main one.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
from pathlib import Path
from typing import Any

from ..launcher.openmpi import INSTALL_HINT, find_libmpi

_SIZE_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")
_THREAD_MULTIPLE = "3"

# Of Open MPI, read when it starts. Where the user has others, be it in a file, mpirun
# puts them into the environment, and they stay.
_SETTINGS = {
    # Looks for a fabric for a second where there is none. Nothing but one-sided
    # operations would use it; what else travels on a fabric does not need it.
    "btl": "^ofi",
    # TCP at its defaults sends one way at a time, and keeps so little on the way that
    # the wire runs dry whenever Python computes.
    "btl_tcp_flags": "1",  # send only
    "btl_tcp_max_send_size": str(2**20),
}


def launched_size(backend: str) -> int | None:
    """How many ranks the launcher says that it started; None where it doesn't say."""
    if backend == "ring":
        hosts = os.environ.get("MLX_HOSTFILE")
        if hosts is None or "MLX_RANK" not in os.environ:
            return None
        return len(json.loads(Path(hosts).read_text()))
    if backend == "mpi":
        for name in _SIZE_VARIABLES:
            if os.environ.get(name, "").isdigit():
                return int(os.environ[name])
    return None


def prepare_mpi() -> Any:
    """Points MLX at mpi4py's libmpi and has MPI end with the process.

    Returns mpi4py's MPI module, not yet initialized; None where there is no MPI.

    Raises:
        RuntimeError: where something else started MPI, or where MPI is not Open MPI.
    """
    library = find_libmpi()
    if library is None:
        return None
    from mpi4py import MPI

    if MPI.Is_initialized():
        raise RuntimeError(
            "MPI was started before mlxdist.init(), and MLX can't join it then. Call "
            "mlxdist.init() first, or import mlxdist before mpi4py."
        )
    if not MPI.Get_library_version().startswith("Open MPI"):
        raise RuntimeError(
            f"mpi4py loaded {library}, which is not Open MPI, and MLX works with "
            f"Open MPI alone. {INSTALL_HINT}"
        )
    os.environ["MLX_MPI_LIBNAME"] = library
    os.environ.setdefault("OMPI_MPI_THREAD_LEVEL", _THREAD_MULTIPLE)
    for name, value in _SETTINGS.items():
        os.environ.setdefault(f"OMPI_MCA_{name}", value)
    _finalize_at_exit(library)
    return MPI


def _finalize_at_exit(library: str) -> None:
    # MLX ends MPI only when its last Group dies, which at exit may be too early, or
    # never. The groups are kept alive instead (see `keep`) and the C library ends MPI
    # as the very last thing: its handlers run in reverse, and this one comes first.
    finalize = ctypes.cast(ctypes.CDLL(library).MPI_Finalize, ctypes.c_void_p)
    at_exit = ctypes.CDLL(None).__cxa_atexit
    at_exit.argtypes = [ctypes.c_void_p] * 3
    at_exit(finalize, None, None)


def keep(thing: object) -> None:
    """Keeps an object alive until the process is gone.

    For MLX's groups: a collective that is still pending crashes when its group is
    freed, and freeing one after MPI has ended aborts.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def keep_freed_memory() -> bool:
    """Keeps glibc from handing big freed blocks back to the kernel.

    MLX on Linux allocates with malloc, and a fresh block of megabytes costs a page
    fault for every 4 KiB. Returns whether it was done: not on macOS, where MLX has
    its own cache, and not where MLXDIST_KEEP_MEMORY=0.
    """
    if platform.system() != "Linux" or os.environ.get("MLXDIST_KEEP_MEMORY") == "0":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # musl
        return False
    trim_threshold, top_pad, mmap_max = -1, -2, -4
    for option, value in (
        (mmap_max, 0),
        (trim_threshold, 2**31 - 1),
        (top_pad, 64 * 2**20),
    ):
        mallopt(option, value)
    return True


def return_freed_memory() -> None:
    """Gives back what is free at this moment: once, after the making of a model."""
    if platform.system() == "Linux" and hasattr(ctypes.CDLL(None), "malloc_trim"):
        ctypes.CDLL(None).malloc_trim(0)
