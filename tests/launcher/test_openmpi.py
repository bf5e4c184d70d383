"""Finding the Open MPI in use."""

import os
import stat

from mlxdist.launcher import openmpi


def test_find_libmpi_returns_the_library_and_not_the_linker_stub():
    library = openmpi.find_libmpi()
    assert os.path.isabs(library)
    with open(library, "rb") as file:
        assert file.read(4) in (b"\x7fELF", b"\xcf\xfa\xed\xfe")


def test_find_mpirun_returns_the_one_of_the_library():
    mpirun = openmpi.find_mpirun()
    assert os.path.isabs(mpirun)
    assert os.stat(mpirun).st_mode & stat.S_IXUSR
    prefix = os.path.dirname(os.path.dirname(mpirun))
    assert openmpi.find_libmpi().startswith(os.path.realpath(prefix))
