"""MPI in a rank whose script may not call `mlxdist.init()`.

MLX starts MPI by itself, in `mx.distributed.init()`. It finds only a libmpi of a name
that the Open MPI of the wheel does not have. And it ends MPI when its last group is
freed: never in a world of one, and too early where another group is left. mpirun then
reports a failure of a job that has succeeded.

`rank_main` loads this file before the package exists: standard library only.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from pathlib import Path

from . import environment

_NAMES = ("libmpi.so.40", "libmpi.40.dylib")  # of Open MPI 4 and 5


def find_for_mlx() -> None:
    """Set the path of the libmpi that MLX loads, unless the user did."""
    for folder in environment.mpi_library_folders():
        for name in _NAMES:
            path = Path(folder, name)
            if path.exists():
                environment.set_default_libmpi(str(path))
                return


def has_joined() -> bool:
    """Return whether this process has joined other ranks, over MPI or otherwise."""
    library = _loaded_libmpi()
    by_mpi = library is not None and _flag(library, "MPI_Initialized")
    return by_mpi or environment.launched_by_mlx()


def finalize() -> bool:
    """End MPI if MLX started it and nobody else ends it.

    MLX must do no more after it, so the caller leaves by `os._exit`.

    Returns:
        Whether it was ended here.
    """
    library = _loaded_libmpi()
    mlx = sys.modules.get("mlx.core")
    if library is None or mlx is None or environment.finalizes_mpi(os.getpid()):
        return False
    if not _flag(library, "MPI_Initialized") or _flag(library, "MPI_Finalized"):
        return False
    mlx.synchronize()
    library.MPI_Finalize()
    return True


def _flag(library: ctypes.CDLL, name: str) -> bool:
    value = ctypes.c_int()
    getattr(library, name)(ctypes.byref(value))
    return bool(value)


def _loaded_libmpi() -> ctypes.CDLL | None:
    """Return the libmpi that this process has loaded, None if it has none."""
    for name in (environment.get(environment.LIBMPI), *_NAMES):
        if name:
            with contextlib.suppress(OSError):  # it is not loaded
                return ctypes.CDLL(name, mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
    return None
