"""Shared memory of MPI: it has no name once all ranks have joined."""

import mmap
import os
import sys

import pytest

from mlxdist.world.shared_memory import segments, unlink_segments
from tests.support import jobs

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="macOS has no /proc")


@pytest.mark.mpi(min_size=2)
def test_init_leaves_no_name_of_mpis_shared_memory(world):
    world.barrier()
    paths = list(segments())
    assert paths  # those of all ranks of this host
    assert [path for path in paths if os.path.exists(path)] == []


def test_world_of_one_leaves_no_name_of_mpis_shared_memory(tmp_path):
    """Open MPI does not remove it: a child of a rank, or a script without mpirun."""
    source = """
import os, mlxdist
from mlxdist.world import shared_memory
assert mlxdist.init().backend == "mpi"
paths = list(shared_memory.segments())
print(len(paths), [path for path in paths if os.path.exists(path)])
"""
    done = jobs.run([sys.executable, "-c", source], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split(maxsplit=1)[1:] == ["[]\n"]
    assert done.stdout[0] != "0"  # it has one


@pytest.mark.parametrize("name", ["sm_segment.mac 1.0.1", "vader_segment.a"])
def test_unlink_segments_removes_what_mpi_has_mapped_and_nothing_else(name, tmp_path):
    files = [tmp_path / name, tmp_path / "other_segment.a"]
    maps = []
    for path in files:
        path.write_bytes(bytes(mmap.PAGESIZE))
        with path.open("r+b") as file:
            maps.append(mmap.mmap(file.fileno(), 0))
    assert str(files[0]) in segments()
    unlink_segments()
    assert [path.exists() for path in files] == [False, True]
    for each in maps:
        each.close()
