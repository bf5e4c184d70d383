"""`init()`: the worlds that it joins, and those that it rejects."""

import sys
from contextlib import nullcontext

import numpy as np
import pytest

import mlxdist
from mlxdist.launcher.openmpi import find_libmpi
from tests.support.jobs import MLXDIST_RUN, mpi_job, run

INIT = "import mlxdist\nworld = mlxdist.init({})\nprint(world.size)\n"


def init_alone(folder, arguments="", *, env=None):
    """Run a program that calls `init` without a launcher."""
    (folder / "job.py").write_text(INIT.format(arguments))
    return run([sys.executable, "job.py"], cwd=folder, env=env)


@pytest.mark.mpi
def test_init_again_returns_the_same_world(world):
    assert mlxdist.init() is world
    assert mlxdist.init(timeout=np.float32(300)) is world
    with pytest.raises(ValueError, match="joins one world"):
        mlxdist.init("ring")
    with pytest.raises(ValueError, match=r"init\(timeout=7\), but the world"):
        mlxdist.init(timeout=7)
    with pytest.raises(ValueError, match=r"init\(guard=False\), but"):
        mlxdist.init(guard=False)


@pytest.mark.mpi
def test_init_again_with_strict_rejects_a_world_of_one(world):
    refused = pytest.raises(RuntimeError, match="a world of one rank")
    with refused if world.size == 1 else nullcontext():
        assert mlxdist.init(strict=True) is world


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
    assert result.returncode in (1, 14)  # 14 from the MPI that MLX has started
    assert message in result.stderr


# MLX starts MPI, and then mlxdist joins.
MLX_FIRST = "import mlx.core as mx\nmx.distributed.init()\n" + INIT.format("")


def test_init_after_mlx_joined_the_same_mpi_joins_all_ranks(tmp_path):
    """As where a trainer calls `mx.distributed.init()` under `mlxdist run`."""
    (tmp_path / "job.py").write_text(MLX_FIRST)
    job = [*MLXDIST_RUN, "-n", "2", "job.py"]
    result = run(job, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.split() == ["2", "2"]


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(MLX_FIRST, id="mlx", marks=pytest.mark.long),
        pytest.param(INIT.format(""), id="init"),
    ],
)
def test_init_with_mpi_that_lacks_threads_raises(script, tmp_path):
    env = {"MLX_MPI_LIBNAME": find_libmpi(), "OMPI_MPI_THREAD_LEVEL": "0"}
    result = mpi_job(2, script, folder=tmp_path, env=env)
    assert result.returncode == 1
    assert "MPI runs with thread level 0" in result.stderr
    assert "Remove OMPI_MPI_THREAD_LEVEL from the environment" in result.stderr


def test_init_on_ranks_with_different_versions_raises_on_all(tmp_path):
    script = """
import os
import mlxdist, mlxdist.version
rank = os.environ["OMPI_COMM_WORLD_RANK"]
mlxdist.version.__version__ = "0." + rank
try:
    mlxdist.init()
except RuntimeError as error:
    print(rank, "0: mlxdist 0.0" in str(error), "1: mlxdist 0.1" in str(error))
"""
    result = mpi_job(2, script, folder=tmp_path)
    assert sorted(result.stdout.splitlines()) == ["0 True True", "1 True True"]


def test_init_seeds_ranks_differently_unless_they_are_seeded(tmp_path):
    """MLX seeds with the time, which is that of the launch on all ranks."""
    script = """
import mlx.core as mx, numpy as np
import mlxdist
def draws_are_equal():
    with mlxdist.init() as world:
        return world.identical({"x": mx.random.uniform(shape=(4,))})
unseeded = draws_are_equal()
mx.random.seed(3)
print(unseeded, draws_are_equal())
"""
    result = mpi_job(2, script, folder=tmp_path)
    assert result.stdout.splitlines() == 2 * ["False True"], result.stderr


NEVER_JOINS = """
import os, signal, sys, time
from mlxdist.launcher import join_deadline
join_deadline.LEAST_TIMEOUT = 3.0
def fail():
    {act}
if os.environ["OMPI_COMM_WORLD_RANK"] == "1":
    {where}
import mlxdist
mlxdist.init(timeout=1)
time.sleep(600)
"""
BEFORE = "fail()"
IN_MPI = """
    from mlxdist.world import join
    make_group = join._make_group
    join._make_group = lambda *arguments: (make_group(*arguments), fail())[0]
"""
BEFORE_GUARD = """
    from mlxdist.world import guard
    guard.Guard.install = lambda guard: fail()
"""
STOPPED = "os.kill(os.getpid(), signal.SIGSTOP)"


@pytest.mark.parametrize(
    ("where", "act", "message"),
    [
        (BEFORE, "sys.exit(0)", "for rank 1, which never called it"),
        (IN_MPI, STOPPED, "for rank 1, stopped (SIGSTOP)"),
        *(
            pytest.param(where, act, message, marks=pytest.mark.long)
            for where, act, message in (
                (BEFORE, STOPPED, "for rank 1, which never called it"),
                (BEFORE, "time.sleep(600)", "for rank 1, which never called it"),
                (IN_MPI, "sys.exit(0)", "for other ranks"),
                (IN_MPI, "raise KeyError('x')", "for other ranks"),
                (BEFORE_GUARD, STOPPED, "for rank 1, stopped (SIGSTOP)"),
                (BEFORE_GUARD, "time.sleep(600)", "for other ranks"),
            )
        ),
    ],
)
def test_init_with_a_rank_that_does_not_join_ends_the_others(
    where, act, message, mpi_job
):
    done = mpi_job(2, NEVER_JOINS.format(where=where, act=act))
    assert done.returncode != 0
    assert f"waited 3 s in mlxdist.init() {message}. All ranks must" in done.stderr


@pytest.mark.long
def test_init_in_another_thread_joins(tmp_path):
    """Signals have no handlers there; all else works."""
    script = """
import threading
import mlx.core as mx
import mlxdist
def train():
    world = mlxdist.init()
    print(world.size, world.mean(1.0), flush=True)
thread = threading.Thread(target=train)
again = threading.Thread(target=mlxdist.init)  # at the same time
for x in (thread, again):
    x.start()
for x in (thread, again):
    x.join()
"""
    result = mpi_job(2, script, folder=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines() == 2 * ["2 1.0"]


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


def test_init_of_mpi_never_joins_through_another_backend(tmp_path):
    """`mx.distributed.init()` takes any backend that it finds, such as ring."""
    script = """
import mlx.core as mx
init, backends = mx.distributed.init, []
def note(**options):
    backends.append(options.get("backend"))
    return init(**options)
mx.distributed.init = note
mx.distributed.is_available = lambda backend: False
import mlxdist
mlxdist.init("mpi")
assert set(backends) == {"mpi"}, backends
"""
    (tmp_path / "job.py").write_text(script)
    assert run([sys.executable, "job.py"], cwd=tmp_path).returncode == 0


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
        (
            'join.__version__, options["guard"] = "99.0", False',
            "rank 1: mlxdist 99.0, guard=False, ",
        ),
        ("join.world_communicator = lambda: None", "timeline=False, mpi over MLX"),
        ('options["backend"] = "ring"', "rank 1: mlxdist {version}, guard=True, "),
    ],
    ids=["version", "mpi4py", "backend"],
)
def test_init_where_one_rank_communicates_otherwise_raises_on_all(
    difference, message, tmp_path
):
    script = f"""
import os, mlxdist
from mlxdist.world import join
options = dict()
if os.environ["OMPI_COMM_WORLD_RANK"] == "1":
    {difference}
try:
    mlxdist.init(**options)
except RuntimeError as error:
    print(error, flush=True)
"""
    output = mpi_job(2, script, folder=tmp_path).stdout
    assert output.count("the ranks can't work together") == 2
    assert output.count(message.format(version=mlxdist.__version__)) == 2
