"""The end of the process: MPI_Finalize of ranks and of their forked children."""

import signal
import sys

import pytest

from tests.support.jobs import mpi_job, run

# Groups and splits are alive at exit, and one collective has not been evaluated.
PENDING_COLLECTIVES = """
import mlx.core as mx
import mlxdist
world = mlxdist.init()
group, part = world.group, world.split(0)
users = mx.distributed.init().split(0) if world.size > 1 else world.group
pending = mx.distributed.all_sum(mx.ones(3), group=users)
lazy = mlxdist.average_gradients({"w": mx.ones(3)})
mx.eval(pending)
"""

# Each rank forks a child for every way to end.
FORKS = """
import os, signal, sys, time, warnings
import mlxdist
world = mlxdist.init(timeout=10, guard={guard})
warnings.simplefilter("ignore", DeprecationWarning)
def fail():
    raise KeyError("of the child")
def leave():
    raise SystemExit(4)
def terminate():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(99)
def kill():
    os.kill(os.getpid(), signal.SIGKILL)
codes = []
for end in (lambda: sys.exit(0), lambda: sys.exit(3), leave, fail, terminate, kill):
    if os.fork() == 0:
        end()
    codes.append(os.waitstatus_to_exitcode(os.wait()[1]))
    world.barrier()
print("rank", world.rank, codes, flush=True)
time.sleep(0.6)
"""


@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.long), 2])
def test_exit_with_pending_collectives_has_exit_code_0(ranks, tmp_path):
    result = mpi_job(ranks, PENDING_COLLECTIVES, folder=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")


def test_exit_after_mlx_has_joined_without_mpi_has_exit_code_0():
    """MLX looks for a libmpi once, and there is no MPI to finalize."""
    first = "import mlx.core as mx\nmx.distributed.init()\n"
    result = run([sys.executable, "-c", first + PENDING_COLLECTIVES])
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("guard", [True, pytest.param(False, marks=pytest.mark.long)])
def test_exit_of_forked_children_keeps_their_exit_codes_and_the_job(guard, tmp_path):
    """Data loaders fork. Their end must not end MPI, nor the job."""
    result = mpi_job(2, FORKS.format(guard=guard), folder=tmp_path)
    assert result.returncode == 0, result.stderr
    codes = [0, 3, 4, 1, -15, -9]
    lines = sorted(result.stdout.splitlines())
    assert lines == [f"rank 0 {codes}", f"rank 1 {codes}"]
    assert result.stderr.count("KeyError: 'of the child'") == 2
    assert "the job ends" not in result.stderr


STOPS_LATE = """
import atexit, os, signal
if os.environ["OMPI_COMM_WORLD_RANK"] == "1":  # called after those of mlxdist
    atexit.register(os.kill, os.getpid(), signal.SIGSTOP)
import mlxdist
from mlxdist.world import guard
guard.FINALIZE_TIMEOUT = 1.0
mlxdist.init(timeout=2)
"""


def test_finalize_with_a_rank_that_is_stopped_ends_the_job(tmp_path):
    """No rank watches the others any more, and MPI_Finalize waits for all."""
    result = mpi_job(2, STOPS_LATE, folder=tmp_path)
    assert result.returncode == 128 + signal.SIGALRM
    assert "rank 0" in result.stderr


ENDS_LATE = """
import atexit, os, time
if os.environ["OMPI_COMM_WORLD_RANK"] == "1":
    atexit.register(time.sleep, 2.5)
import mlxdist
mlxdist.init(timeout=2)
"""


def test_finalize_with_a_slow_exit_handler_waits_for_it(tmp_path):
    result = mpi_job(2, ENDS_LATE, folder=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
