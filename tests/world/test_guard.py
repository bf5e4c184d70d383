"""Guard: a rank that fails ends the job within seconds, and is named.

Real mpirun jobs. Each case is one way to fail at one place of a step. `--long` runs all
of them, on 2 and 3 ranks, and 200 drawn at random.
"""

import ctypes
import faulthandler
import itertools
import os
import random
import socket
import sys

import pytest

from mlxdist.world.guard import abort
from tests.support.failures import PLACES, WAYS, FailingJob, check_failure
from tests.support.jobs import mpi_job, run

HOST = socket.gethostname()
CASES = list(itertools.product(WAYS, PLACES, [2, 3]))
# Others have finished, and may wait for a rank that waits for a disk or a network.
CASES = [case for case in CASES if case[:2] != ("sleep", "exit")]
# With the tests of the ring, watchdog and postmortem, each way and place at least once.
QUICK_CASES = [
    ("memory", "checkpoint", 3),
    pytest.param("exit0", "forward", 2, marks=pytest.mark.long),
    ("exit3", "gather", 2),
    ("_exit", "exchange", 3),
    ("interrupt", "forward", 2),
    pytest.param("SIGKILL", "checkpoint", 2, marks=pytest.mark.long),
    ("SIGSEGV", "gather", 3),
    pytest.param("SIGSTOP", "exit", 2, marks=pytest.mark.long),
]


@pytest.mark.parametrize(("how", "where", "ranks"), QUICK_CASES)
def test_guard_failure_of_the_last_rank_ends_the_job(how, where, ranks, tmp_path):
    check_failure(tmp_path, FailingJob(how, where, ranks))


@pytest.mark.long
@pytest.mark.timeout(120)
@pytest.mark.parametrize(("how", "where", "ranks"), CASES)
def test_guard_failure_of_any_kind_ends_the_job(how, where, ranks, tmp_path):
    failing_rank = (WAYS.index(how) + PLACES.index(where)) % ranks
    check_failure(tmp_path, FailingJob(how, where, ranks, failing_rank))


# MLX alone hangs at the failure of a rank, or ends as if all were well.
@pytest.mark.parametrize(
    ("how", "where", "ranks"),
    [
        ("SIGKILL", "exchange", 2),
        *(pytest.param(*case, marks=pytest.mark.long) for case in CASES),
    ],
)
def test_guard_failure_over_the_ring_ends_the_job(how, where, ranks, tmp_path):
    check_failure(tmp_path, FailingJob(how, where, ranks, backend="ring"))


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_guard_200_random_failures_end_without_a_hang(tmp_path):
    random_cases = random.Random(7)
    seconds = []
    for index in range(200):
        how, where, ranks = random_cases.choice(CASES)
        folder = tmp_path / str(index)
        folder.mkdir()
        job = FailingJob(how, where, ranks, random_cases.randrange(ranks))
        seconds.append(check_failure(folder, job)[1])
    print(f"longest {max(seconds):.1f} s, mean {sum(seconds) / 200:.1f} s")


def test_guard_without_a_failure_prints_and_writes_nothing(tmp_path):
    """The other cases prove nothing if this fails."""
    result = FailingJob("none", "nowhere", 2).run(tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("finished") == 2
    assert result.stderr == ""
    assert not (tmp_path / "mlxdist-postmortem").exists()


def test_guard_exception_is_printed_once_with_phase_and_traceback(tmp_path):
    err, _ = check_failure(tmp_path, FailingJob("raise", "optimizer", 2, 1))
    assert f"rank 1 on {HOST} failed" in err
    assert err.count("Traceback") == 1
    assert err.count("KeyError: 'the dog ate it'") == 1
    assert "optimizer 1 (Adam).update, optimizer and parameter exchange, step 4" in err


@pytest.mark.long
def test_guard_exception_in_the_exchange_names_its_phase(tmp_path):
    err, _ = check_failure(tmp_path, FailingJob("raise", "exchange", 2, 0))
    assert "failed in optimizer 1 (Adam).update, gradient exchange, step 4" in err


@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.long)])
def test_guard_exception_in_user_code_ends_the_job(rank, tmp_path):
    script = f"""
import mlxdist
world = mlxdist.init()
if world.rank == {rank}:
    raise KeyError("the dog ate it")
world.barrier()
"""
    result = mpi_job(2, script, folder=tmp_path)
    assert result.returncode == 1
    assert f"rank {rank} on {HOST} failed in user code" in result.stderr
    assert result.stderr.count("KeyError: 'the dog ate it'") == 1


def test_guard_in_a_world_of_one_leaves_exceptions_to_python(tmp_path):
    (tmp_path / "job.py").write_text("import mlxdist\nmlxdist.init()\n1 / 0\n")
    result = run([sys.executable, "job.py"], cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr.startswith("Traceback")
    assert result.stderr.rstrip().endswith("ZeroDivisionError: division by zero")


def test_guard_error_of_a_split_without_rank_0_is_printed(tmp_path):
    """Rank 0 reports errors of all ranks, but it is not in this split."""
    script = """
import mlxdist
world = mlxdist.init(timeout=20)
part = world.split(min(world.rank, 1))
if world.rank:
    part.mean({"a" if world.rank == 1 else "b": 1.0})
world.barrier()
"""
    result = mpi_job(3, script, folder=tmp_path)
    assert result.returncode == 1
    assert "World.mean refused" in result.stderr
    assert "rank 0: a\n" in result.stderr


def test_abort_that_hangs_with_pythons_lock_ends_the_process():
    """As mpi4py's does where mpirun is stopped, or another rank aborts as well."""

    class Comm:
        def Abort(self, code):
            ctypes.PyDLL(None).sleep(600)

    pid = os.fork()
    if pid == 0:
        abort(Comm(), 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1


def test_abort_where_no_thread_can_start_still_calls_mpi(monkeypatch):
    """The limit of processes is reached, or memory is."""

    def fail(*_arguments, **_options):
        raise RuntimeError("unable to start watchdog thread")

    class Comm:
        def Abort(self, code):
            os._exit(code)

    pid = os.fork()
    if pid == 0:
        monkeypatch.setattr(faulthandler, "dump_traceback_later", fail)
        abort(Comm(), 7)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7


NO_THREAD = """
import os, threading
import mlxdist
def fail(thread):
    raise RuntimeError("can't start new thread")
if os.environ["OMPI_COMM_WORLD_RANK"] == "1":
    threading.Thread.start = fail
mlxdist.init(timeout=20)
"""


def test_guard_without_a_thread_on_one_rank_ends_the_job(mpi_job):
    done = mpi_job(2, NO_THREAD)
    assert done.returncode != 0
    assert "RuntimeError: can't start new thread" in done.stderr
