"""Watchdog: ranks that hang, are stopped, exit early or lose their mpirun."""

import os
import re
import signal
import socket
import sys
import time

import pytest

from mlxdist.world import postmortem
from tests.support.failures import FailingJob, check_failure, postmortem_folder
from tests.support.jobs import mpi_job, mpirun, processes, start, wait_until

# Rank 1 is 20 times slower than rank 0.
SLOW_JOB = """
import sys, time
import mlx.core as mx, mlx.optimizers as optim
import mlxdist
seconds, timeout = map(float, sys.argv[1:])
world = mlxdist.init(timeout=timeout)
print("up", flush=True)
optimizer = mlxdist.DistributedOptimizer(optim.SGD(0.1), shard=True)
parameters = {"w": mx.zeros(10)}
end = time.monotonic() + seconds
while world.mean(float(time.monotonic() < end)) > 0:
    pause = time.monotonic() + (0.4 if world.rank else 0.02)
    while time.monotonic() < pause:
        pass
    parameters = optimizer.apply_gradients(parameters, parameters)
"""


def test_watchdog_hanging_rank_is_named_with_its_stack(tmp_path):
    err, _ = check_failure(tmp_path, FailingJob("sleep", "exchange", 3, 1))
    assert "it is alive but idle" in err
    assert "time.sleep(1000)" in err  # its stack
    assert "longer than timeout=3" in err
    records = postmortem_folder(tmp_path)
    assert len(list(records.iterdir())) == 3
    report = postmortem.report(records)
    assert "in optimizer 1 (Adam).update, gradient exchange, step 4" in report
    assert re.search(r"stack of rank 1:(?:\n  .*)*fail_first", report)


def test_watchdog_stopped_rank_is_told_from_a_hanging_one(tmp_path):
    err, _ = check_failure(tmp_path, FailingJob("SIGSTOP", "forward", 2, 1))
    assert "its process is stopped (SIGSTOP)" in err


def test_watchdog_early_exit_of_a_rank_ends_the_job(tmp_path):
    script = """
import mlxdist
world = mlxdist.init()
if world.rank == 1:
    world.barrier()
"""
    result = mpi_job(2, script, folder=tmp_path)
    assert result.returncode == 1
    assert "in barrier, step 0 and waits for a rank that has exited" in result.stderr
    assert f"rank 0 on {socket.gethostname()}: exiting" in result.stderr


def test_watchdog_split_may_finish_before_the_others(tmp_path):
    script = """
import time, mlxdist
world = mlxdist.init(timeout=20)
part = world.split(world.rank // 2)
for step in range(10 if world.rank < 2 else 1):
    part.mean(1.0)
    time.sleep(0.1)
"""
    result = mpi_job(3, script, folder=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize(
    "seconds", [3, pytest.param(30, marks=pytest.mark.long)], ids=str
)
def test_watchdog_slow_rank_raises_no_alarm(seconds, tmp_path):
    """Each wait of rank 0 is short, and all of them together exceed the timeout."""
    result = mpi_job(2, SLOW_JOB, seconds, 2, folder=tmp_path, timeout=90)
    assert (result.returncode, result.stderr) == (0, "")


# Rank 0 works alone, in a step and at its end, for longer than the timeout.
WORK_ALONE = """
import subprocess, time
import numpy as np
import mlxdist
world = mlxdist.init(timeout=2)
if world.rank == 0:  # evaluates, while the others wait for it in a call
    matrix, end = np.ones((300, 300)), time.monotonic() + 3.2
    while time.monotonic() < end:
        matrix @ matrix
world.barrier()
if world.rank == 0:  # uploads, while the others wait for it at their end
    subprocess.run(["sleep", "4.5"])
    print("uploaded")
"""


def test_watchdog_waits_for_a_rank_that_works_alone(tmp_path):
    result = mpi_job(2, WORK_ALONE, folder=tmp_path)
    assert (result.returncode, result.stdout) == (0, "uploaded\n"), result.stderr
    assert "rank 1 on" in result.stderr
    assert "s in barrier, step 0:\n  rank 0 on" in result.stderr
    assert "s at its end:\n  rank 0 on" in result.stderr


def test_watchdog_rank_that_waits_for_one_that_finished_ends_the_job(tmp_path):
    """In a collective of the program's own, of which mlxdist knows nothing."""
    script = """
import mlx.core as mx
import mlxdist
world = mlxdist.init(timeout=2.5)
if world.rank == 0:
    mx.eval(mx.distributed.all_sum(mx.ones(3), group=world.group))
"""
    result = mpi_job(2, script, folder=tmp_path)
    assert result.returncode == 1
    assert "has been exiting, after step 0 for" in result.stderr
    assert "mx.distributed.all_sum(mx.ones(3)" in result.stderr  # rank 0's stack


def test_watchdog_orphans_exit_when_mpirun_is_killed(tmp_path):
    """Open MPI ends them after 2 s, but then they leave no records."""
    script = "import mlxdist, time\nmlxdist.init()\nprint('up', flush=True)\n"
    (tmp_path / "job.py").write_text(script + "time.sleep(1000)")
    session = tmp_path / "session"
    session.mkdir()
    job = start([*mpirun(2, str(session)), sys.executable, "job.py"], cwd=tmp_path)
    assert [job.stdout.readline() for _ in range(2)] == 2 * ["up\n"]
    assert len(processes(job.pid)) >= 3
    job.send_signal(signal.SIGKILL)
    job.wait()
    assert wait_until(lambda: not processes(job.pid))
    assert list(session.iterdir()) == []  # mpirun's own files
    records = sorted(path.name for path in postmortem_folder(tmp_path).iterdir())
    assert records == ["rank-0.jsonl", "rank-1.jsonl"]
    job.stdout.close()
    job.stderr.close()


@pytest.mark.long
def test_watchdog_job_that_was_suspended_as_a_whole_continues(tmp_path):
    """As by Ctrl-Z and fg."""
    (tmp_path / "job.py").write_text(SLOW_JOB)
    job = start([*mpirun(2), sys.executable, "job.py", "6", "3"], cwd=tmp_path)
    assert [job.stdout.readline() for _ in range(2)] == 2 * ["up\n"]
    time.sleep(1)
    ranks = [pid for pid in processes(job.pid) if pid != job.pid]
    for pid in ranks:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(4)
    for pid in sorted(ranks):  # rank 0 runs before rank 1, and waits for it
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.7)
    _, err = job.communicate(timeout=100)
    assert (job.returncode, err) == (0, "")
