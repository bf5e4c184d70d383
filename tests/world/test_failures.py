"""Ranks that fail: real mpirun jobs, ended within seconds, with the rank's name.

Each case is one way to fail at one place of a step. `--long` runs all of them, on 2
and 3 ranks, and 200 drawn at random.
"""

import itertools
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time

import mlx.core as mx
import mlx.optimizers as optim
import pytest

import mlxdist
from mlxdist.world import postmortem
from tests.support.jobs import mpi_job, mpirun, processes, start

HOST = socket.gethostname()
TIMEOUT = 3.0  # of mlxdist.init()
# mpirun takes a second and a half to clean up, and longer where cores are busy; a job
# that hangs would take for ever.
ALLOWED = TIMEOUT + 8.0

JOB = """
import os, signal, sys, time
import mlx.core as mx, mlx.optimizers as optim
import mlxdist
from mlxdist.checkpoint import commit as writing
from mlxdist.comm import progress
from mlxdist.optim import state

how, where, victim = sys.argv[1], sys.argv[2], int(sys.argv[3])
world = mlxdist.init(timeout=TIMEOUT)
if world.is_root:
    print("started", time.time(), flush=True)
armed = False

def fail():
    if not armed or world.rank != victim:
        return
    print("failing", time.time(), flush=True)
    if how == "raise":
        raise KeyError("the dog ate it")
    if how == "memory":
        raise MemoryError
    if how == "exit0":
        sys.exit(0)
    if how == "exit3":
        sys.exit(3)
    if how == "_exit":
        os._exit(5)
    if how == "interrupt":
        signal.raise_signal(signal.SIGINT)
    if how == "sleep":
        time.sleep(1000)
    os.kill(os.getpid(), getattr(signal, how))
    time.sleep(1000)

class Adam(optim.Adam):
    elementwise = True
    def apply_single(self, gradient, parameter, state):
        if where == "optimizer":
            fail()
        return super().apply_single(gradient, parameter, state)

look = progress.Progress._look
def failing_look(self):
    if where == "exchange":
        fail()
    return look(self)
progress.Progress._look = failing_look

optimizer = mlxdist.DistributedOptimizer(Adam(0.1), shard=True)
parameters = {"w": mx.zeros(5000), "b": mx.zeros((7, 3))}
optimizer.init(parameters)
for step in range(6):
    armed = step == 3
    if where == "forward":
        fail()
    parameters = optimizer.apply_gradients(parameters, parameters)
    mx.eval(parameters)
    if where == "checkpoint" and step == 2:
        mlxdist.save_checkpoint("saves", step, parameters, optimizer)
    if where == "checkpoint" and armed:
        together = writing.together
        def failing_together(*arguments, **told):  # its file is written
            fail()
            return together(*arguments, **told)
        writing.together = failing_together
        mlxdist.save_checkpoint("saves", step, parameters, optimizer)
    if where == "gather" and armed:
        gather = state._from_rank
        def failing_gather(*arguments):
            fail()
            return gather(*arguments)
        state._from_rank = failing_gather
        optimizer.gather_state()
if where == "exit":
    armed = True
    if world.rank != victim:
        world.barrier()
    fail()
print("finished", world.rank, flush=True)
""".replace("TIMEOUT", str(TIMEOUT))

HOW = ["raise", "memory", "exit0", "exit3", "_exit", "interrupt", "sleep"]
HOW += ["SIGKILL", "SIGSEGV", "SIGSTOP"]
WHERE = ["forward", "exchange", "optimizer", "gather", "checkpoint", "exit"]
EVERY = list(itertools.product(HOW, WHERE, [2, 3]))
# With the tests below that look closer, each way and each place at least once.
SOME = [
    ("memory", "checkpoint", 3),
    ("exit0", "forward", 2),
    ("exit3", "gather", 2),
    ("_exit", "exchange", 3),
    ("interrupt", "forward", 2),
    ("SIGKILL", "checkpoint", 2),
    ("SIGSEGV", "gather", 3),
    ("SIGSTOP", "exit", 2),
]


def check(how, where, ranks, victim, folder):
    """Runs a case; what it told, and the seconds from the failure to the end."""
    done = mpi_job(ranks, JOB, how, where, victim, folder=folder, timeout=TIMEOUT + 30)
    ended = time.time()
    told = f"{how} {where}, rank {victim} of {ranks}:\n{done.stdout}\n{done.stderr}"
    assert done.returncode != 0, told
    assert not re.search(r"Address already|double free|corrupted", done.stderr), told
    named = rf"rank {victim} on {HOST}|process rank {victim} |@1,{victim}\]"
    assert re.search(named, done.stderr), told
    failed = float(re.search(r"failing (\S+)", done.stdout).group(1))
    assert ended - failed < ALLOWED, f"{ended - failed:.1f} s\n{told}"
    if where == "checkpoint":
        check_checkpoint(folder / "saves")
    return done.stderr, ended - failed


def check_checkpoint(folder):
    """The one before the failure is the last, and whole."""
    own = {"w": mx.zeros(5000), "b": mx.zeros((7, 3))}
    ours = mlxdist.DistributedOptimizer(optim.Adam(0.1))
    loaded = mlxdist.load_checkpoint(folder, own, ours)
    assert (loaded.step, loaded.skipped) == (2, ())
    assert ours.step.item() == 3


@pytest.mark.parametrize(("how", "where", "ranks"), SOME)
def test_a_failure_ends_the_job(how, where, ranks, tmp_path):
    check(how, where, ranks, ranks - 1, tmp_path)


@pytest.mark.long
@pytest.mark.timeout(120)
@pytest.mark.parametrize(("how", "where", "ranks"), EVERY)
def test_every_failure_ends_the_job(how, where, ranks, tmp_path):
    victim = (HOW.index(how) + WHERE.index(where)) % ranks
    check(how, where, ranks, victim, tmp_path)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_200_random_failures_without_a_hang(tmp_path):
    draw = random.Random(7)
    seconds = []
    for index in range(200):
        how, where, ranks = draw.choice(EVERY)
        folder = tmp_path / str(index)
        folder.mkdir()
        seconds.append(check(how, where, ranks, draw.randrange(ranks), folder)[1])
    print(f"longest {max(seconds):.1f} s, mean {sum(seconds) / 200:.1f} s")


def test_without_a_failure_the_job_finishes(tmp_path):
    """The other cases prove nothing if this fails."""
    done = mpi_job(2, JOB, "none", "nowhere", 0, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished") == 2
    assert done.stderr == ""
    assert not (tmp_path / "mlxdist-postmortem").exists()


def test_the_reason_stands_once_with_place_phase_and_traceback(tmp_path):
    told, _ = check("raise", "optimizer", 2, 1, tmp_path)
    assert f"rank 1 on {HOST} failed" in told
    assert told.count("Traceback") == 1
    assert told.count("KeyError: 'the dog ate it'") == 1
    assert "optimizer 1.update, optimizer and parameter exchange, step 4" in told
    told, _ = check("raise", "exchange", 2, 0, tmp_path)
    assert "failed in optimizer 1.update, gradient exchange, step 4" in told


def test_a_stuck_rank_is_named_and_a_postmortem_tells_who_parted_first(tmp_path):
    told, _ = check("sleep", "exchange", 3, 1, tmp_path)
    assert "it is alive but idle" in told
    assert "time.sleep(1000)" in told  # its stack
    assert "longer than timeout=3" in told
    (folder,) = (tmp_path / "mlxdist-postmortem").iterdir()
    assert len(list(folder.iterdir())) == 3
    command = [sys.executable, "-m", "mlxdist.cli", "doctor", "--postmortem"]
    told = subprocess.run(
        [*command, str(folder)], capture_output=True, text=True, check=True
    ).stdout
    assert "in optimizer 1.update, gradient exchange, step 4" in told
    assert "stack of rank 1:" in told
    assert "failing_look" in told


def test_a_stopped_rank_is_told_from_a_stuck_one(tmp_path):
    told, _ = check("SIGSTOP", "forward", 2, 1, tmp_path)
    assert "its process is stopped (SIGSTOP)" in told


def test_a_postmortem_of_a_killed_rank(tmp_path):
    """mpirun ends the others with SIGTERM, while they are inside MPI."""
    check("SIGKILL", "forward", 3, 1, tmp_path)
    (folder,) = (tmp_path / "mlxdist-postmortem").iterdir()
    assert sorted(f.name for f in folder.iterdir()) == ["rank-0.jsonl", "rank-2.jsonl"]
    assert "rank 1 wrote nothing: it was killed" in postmortem.report(folder)


SLOW = """
import time
import mlx.core as mx, mlx.optimizers as optim
import mlxdist
world = mlxdist.init(timeout=TIMEOUT)
print("up", flush=True)
optimizer = mlxdist.DistributedOptimizer(optim.SGD(0.1), shard=True)
w = {"w": mx.zeros(10)}
end = time.monotonic() + SECONDS
while world.mean(float(time.monotonic() < end)) > 0:
    pause = time.monotonic() + (0.4 if world.rank else 0.02)
    while time.monotonic() < pause:
        pass
    w = optimizer.apply_gradients(w, w)
"""


def slow(seconds, timeout):
    return SLOW.replace("SECONDS", str(seconds)).replace("TIMEOUT", str(timeout))


@pytest.mark.parametrize(
    "seconds", [2, pytest.param(30, marks=pytest.mark.long)], ids=str
)
def test_a_slow_rank_is_no_alarm(seconds, tmp_path):
    """20 times slower than the other."""
    done = mpi_job(2, slow(seconds, 300), folder=tmp_path, timeout=90)
    assert (done.returncode, done.stderr) == (0, "")


def test_orphans_end_themselves(tmp_path):
    """mpirun killed with -9 leaves its ranks behind: FACTS, failures."""
    script = "import mlxdist, time\nmlxdist.init()\nprint('up', flush=True)\n"
    (tmp_path / "job.py").write_text(script + "time.sleep(1000)")
    job = start([*mpirun(2), sys.executable, "job.py"], cwd=tmp_path)
    assert job.stdout.readline().strip() == "up"
    assert job.stdout.readline().strip() == "up"
    ranks = [pid for pid in processes(job.pid) if pid != job.pid]
    assert len(ranks) >= 2
    job.send_signal(signal.SIGKILL)
    job.wait()
    deadline = time.monotonic() + 5
    while processes(job.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not processes(job.pid)
    job.stdout.close()
    job.stderr.close()


def test_a_job_that_was_stopped_as_a_whole_goes_on(tmp_path):
    """As by Ctrl-Z and fg."""
    (tmp_path / "job.py").write_text(slow(seconds=6, timeout=3))
    job = start([*mpirun(2), sys.executable, "job.py"], cwd=tmp_path)
    assert [job.stdout.readline() for _ in range(2)] == 2 * ["up\n"]
    time.sleep(1)
    ranks = [pid for pid in processes(job.pid) if pid != job.pid]
    for pid in ranks:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(4)
    for pid in sorted(ranks):  # rank 0 waits for rank 1, and is awake before it
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.7)
    _, err = job.communicate(timeout=60)
    assert (job.returncode, err) == (0, "")
