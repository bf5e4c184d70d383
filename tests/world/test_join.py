"""`init()`: the worlds that it joins, and those that it rejects."""

import sys

import pytest

import mlxdist
from tests.support.jobs import mpi_job, run

INIT = "import mlxdist\nworld = mlxdist.init({})\nprint(world.size)\n"


def init_alone(folder, arguments="", *, env=None):
    """Run a program that calls `init` without a launcher."""
    (folder / "job.py").write_text(INIT.format(arguments))
    return run([sys.executable, "job.py"], cwd=folder, env=env)


@pytest.mark.mpi
def test_init_again_returns_the_same_world(world):
    assert mlxdist.init() is world
    with pytest.raises(ValueError, match="joins one world"):
        mlxdist.init("ring")


@pytest.mark.mpi
def test_init_starts_mpi_with_threads_for_mlx_and_mpi4py(world):
    from mpi4py import MPI

    assert MPI.Query_thread() == MPI.THREAD_MULTIPLE
    assert MPI.COMM_WORLD.Get_size() == world.size
    assert MPI.COMM_WORLD.Get_rank() == world.rank
    assert MPI.COMM_WORLD.Get_errhandler() == MPI.ERRORS_ARE_FATAL


@pytest.mark.parametrize("timeout", [0, -1, None, "5", float("nan")], ids=str)
def test_init_with_an_invalid_timeout_raises(timeout):
    with pytest.raises(ValueError, match=r"timeout is .*; wanted a number of seconds"):
        mlxdist.init(timeout=timeout)


def test_import_starts_no_mpi(tmp_path):
    script = """
import mlxdist
from mpi4py import MPI
assert not MPI.Is_initialized()
"""
    (tmp_path / "job.py").write_text(script)
    assert run([sys.executable, "job.py"], cwd=tmp_path).returncode == 0


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("import mlx.core as mx; mx.distributed.init()", "MLX sees 1"),
        ("import mpi4py.MPI", "MPI was started before mlxdist.init()"),
    ],
    ids=["mlx", "mpi4py"],
)
def test_init_after_mpi_was_started_raises(statement, message, tmp_path):
    """Each rank would else train alone, with exit code 0."""
    result = mpi_job(2, f"{statement}\n{INIT.format('')}", folder=tmp_path)
    assert result.returncode != 0
    assert message in result.stderr


def test_init_before_mpi4py_is_imported_joins_all_ranks(tmp_path):
    script = "import mlxdist\nfrom mpi4py import MPI\nassert mlxdist.init().size == 2"
    assert mpi_job(2, script, folder=tmp_path).returncode == 0


def test_init_needs_no_environment_variable(tmp_path):
    """Not even PATH: MPI is found in the folder of Python."""
    result = mpi_job(2, INIT.format(""), folder=tmp_path, env={"PATH": ""})
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["2", "2"]


def test_init_without_a_launcher_is_a_world_of_one(tmp_path):
    result = init_alone(tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "1\n", "")


def test_init_strict_without_a_launcher_raises(tmp_path):
    result = init_alone(tmp_path, "strict=True")
    assert result.returncode == 1
    assert "mlxdist run -n 2" in result.stderr


def test_init_under_a_launcher_that_mpi_does_not_know_raises(tmp_path):
    env = {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "4"}
    result = init_alone(tmp_path, env=env)
    assert result.returncode == 1
    assert "the launcher started 4 ranks, but MLX sees 1" in result.stderr
    assert init_alone(tmp_path, "strict=False", env=env).returncode == 0


def test_init_ring_without_a_launcher_is_a_world_of_one(tmp_path):
    result = init_alone(tmp_path, "'ring'")
    assert (result.returncode, result.stdout) == (0, "1\n"), result.stderr


@pytest.mark.parametrize(
    ("difference", "message"),
    [
        ('join.__version__ = "99.0"', "rank 1: mlxdist 99.0, "),
        ("join.world_communicator = lambda: None", "timeline=False, over MLX"),
    ],
    ids=["version", "mpi4py"],
)
def test_init_where_one_rank_communicates_otherwise_raises_on_all(
    difference, message, tmp_path
):
    script = f"""
import os, mlxdist
from mlxdist.world import join
if os.environ["OMPI_COMM_WORLD_RANK"] == "1":
    {difference}
try:
    mlxdist.init()
except RuntimeError as error:
    print(error, flush=True)
"""
    output = mpi_job(2, script, folder=tmp_path, timeout=30).stdout
    assert output.count("the ranks can't work together") == 2
    assert output.count(message) == 2
