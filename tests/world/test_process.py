"""MPI settings and allocator settings of the process."""

import sys
from pathlib import Path

import mlx.core as mx
import pytest

from mlxdist.world import process
from tests.support.attempts import any_of

REPORT_START_UP = """
import os, time
import mlxdist
start = time.perf_counter()
mlxdist.init()
print(time.perf_counter() - start)
print(os.environ.get("OMPI_MCA_btl"), os.environ.get("OMPI_MCA_btl_tcp_flags"))
"""


@pytest.mark.alone
def test_prepare_mpi_by_default_skips_the_search_for_a_fabric(mpi_job, tmp_path):
    """Open MPI's wheel sleeps for a second in it, whenever a rank starts."""

    def is_fast():
        result = mpi_job(1, REPORT_START_UP, env={"HOME": str(tmp_path)})
        seconds, settings = result.stdout.splitlines()
        assert settings == "^ofi 1"
        return float(seconds) < 1.0  # 0.1 on a quiet machine

    assert any_of(6, is_fast)


def test_prepare_mpi_keeps_the_values_of_the_users_parameter_file(mpi_job, tmp_path):
    Path(tmp_path, ".openmpi").mkdir()
    Path(tmp_path, ".openmpi", "mca-params.conf").write_text("btl = ^smcuda\n")
    result = mpi_job(1, REPORT_START_UP, env={"HOME": str(tmp_path)})
    assert result.stdout.splitlines()[1] == "^smcuda 1"


def test_prepare_mpi_keeps_the_values_of_the_environment(mpi_job):
    parameters = {"OMPI_MCA_btl": "self,sm", "OMPI_MCA_btl_tcp_flags": "3"}
    result = mpi_job(1, REPORT_START_UP, env=parameters)
    assert result.stdout.splitlines()[1] == "self,sm 3"


@pytest.mark.parametrize(
    ("ranks", "on_host", "cores", "naps"),
    [(1, 1, 1, False), (2, 2, 2, False), (4, 4, 2, True), (2, 1, 8, True)],
)
def test_ranks_nap_where_they_share_cores_or_are_on_several_hosts(
    ranks, on_host, cores, naps
):
    assert process.waits_with_naps(ranks, on_host, cores) is naps


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_keep_freed_memory_leaves_a_cache_limit_that_a_user_has_set(monkeypatch):
    monkeypatch.delenv("MLXDIST_KEEP_MEMORY", raising=False)
    limit = mx.set_cache_limit(5 * 2**20)
    try:
        process.keep_freed_memory()
        assert mx.set_cache_limit(32 * 2**20) == 5 * 2**20
        process.keep_freed_memory()
        has_own_cache = mx.metal.is_available() or mx.cuda.is_available()
        assert mx.set_cache_limit(limit) < 32 * 2**20 or has_own_cache
    finally:
        mx.set_cache_limit(limit)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_keep_freed_memory_can_be_disabled(monkeypatch):
    monkeypatch.setenv("MLXDIST_KEEP_MEMORY", "0")
    assert not process.keep_freed_memory()
    monkeypatch.delenv("MLXDIST_KEEP_MEMORY")
    assert process.keep_freed_memory()
