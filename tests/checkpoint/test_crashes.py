"""Jobs that are killed, or whose disk is full, during a save: older ones are intact.

test_durability.py has each crash of a machine, test_faults.py each error of a call.
"""

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlx.core as mx
import mlx.optimizers as optim
import pytest

import mlxdist
from tests.support.jobs import end_session, mpi_job, mpirun, processes, start

# Parameters and state give away the step: SGD with momentum 1 and gradients of 1.
JOB = """
import sys
import mlx.core as mx, mlx.optimizers as optim
import mlxdist

folder, size, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
world = mlxdist.init(timeout=20)
optimizer = mlxdist.DistributedOptimizer(optim.SGD(-1.0, momentum=1.0), shard=True)
params = {"w": mx.zeros(size), "b": mx.zeros((7, 3))}
optimizer.init(params)
loaded = mlxdist.load_checkpoint(folder, params, optimizer, missing_ok=True)
step = loaded.step if loaded else 0
# Their mean over the ranks is 1.
local = 1 + world.rank - (world.size - 1) / 2
grads = {"w": mx.full(size, local), "b": mx.full((7, 3), local)}
while step < steps:
    step += 1
    params = optimizer.apply_gradients(grads, params)
    mx.eval(params)
    background = step % 3 == 0 and "--background" in sys.argv
    try:
        mlxdist.save_checkpoint(
            folder,
            step,
            params,
            optimizer,
            {"step": step},
            keep=2,
            background=background,
        )
        world.print("saves" if background else "saved", step)
    except mlxdist.CheckpointError as error:
        world.print("failed", step, error)
"""


def check_newest(folder, size):
    """Assert that the newest checkpoint is intact, and return its step."""
    params = {"w": mx.zeros(size), "b": mx.zeros((7, 3))}
    optimizer = mlxdist.DistributedOptimizer(optim.SGD(-1.0, momentum=1.0))
    loaded = mlxdist.load_checkpoint(folder, params, optimizer)
    assert loaded.skipped == ()
    step = loaded.step
    assert loaded.extra == {"step": step}
    assert optimizer.step.item() == step
    for path in ("w", "b"):
        assert mx.all(params[path] == step * (step + 1) / 2)
        assert mx.all(optimizer.state[path]["v"] == step)
    return step


def kill_while_saving(tmp_path, draw, size, ranks=2):
    """Kill a rank or mpirun of the job at a random time; return the steps saved."""
    script = tmp_path / "job.py"
    script.write_text(JOB)
    arguments = [tmp_path / "saves", size, 10**6, "--background"]
    launcher = mpirun(ranks) if ranks > 1 else []
    job = start([*launcher, sys.executable, str(script), *map(str, arguments)])
    try:
        lines = [job.stdout.readline()]
        assert lines[0].startswith("save"), job.stderr.read()
        time.sleep(draw.uniform(0, 0.4))
        pids = [pid for pid in processes(job.pid) if is_rank(pid)]
        os.kill(draw.choice([job.pid, *pids]), signal.SIGKILL)
        lines += job.stdout.read().splitlines()
        deadline = time.monotonic() + 60
        while processes(job.pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not processes(job.pid)
    finally:
        end_session(job.pid)
        job.stdout.close()
        job.stderr.close()
        job.wait()
    matches = (re.fullmatch(r"saved (\d+)\n?", line) for line in lines)
    return [int(match[1]) for match in matches if match]


def is_rank(pid):
    with contextlib.suppress(OSError):
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        return b"job.py" in command and b"mpirun" not in command.split(b"\0")[0]
    return False


def kill_jobs(tmp_path, seed, ranks, size):
    """Kill jobs of so many ranks each; return how many were killed during a save."""
    draw = random.Random(seed)
    killed_in_save = 0
    for count in ranks:
        saved = kill_while_saving(tmp_path, draw, size, count)
        step = check_newest(tmp_path / "saves", size)
        # A save that was reported is there; one more may be complete.
        assert step >= max(saved, default=1)
        unfinished = [p for p in (tmp_path / "saves").iterdir() if p.name[0] == "."]
        killed_in_save += bool(unfinished)
    return killed_in_save


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(4))
def test_200_kills_during_saves_leave_the_newest_checkpoint_intact(seed, tmp_path):
    size = random.Random(seed).randrange(4_000_000)
    killed_in_save = kill_jobs(tmp_path, 10 + seed, [2] * 50, size)
    print(f"\n50 of 50 loaded; {killed_in_save} were killed during a save")


def test_job_without_a_kill_saves_every_step(tmp_path):
    """The other tests prove nothing if this fails."""
    done = mpi_job(2, JOB, tmp_path / "saves", 1000, 4, folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [f"saved {step}" for step in range(1, 5)]
    assert check_newest(tmp_path / "saves", 1000) == 4


@pytest.fixture
def small_disk(tmp_path):
    """Return a folder on a disk of 24 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)]
    if os.geteuid() or not shutil.which("mount") or subprocess.run(mount).returncode:
        pytest.skip("mounting a small disk takes root on Linux")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize(
    "background", [pytest.param((), marks=pytest.mark.long), ("--background",)], ids=str
)
def test_save_on_a_full_disk_fails_and_leaves_the_older_checkpoint(
    background, small_disk, tmp_path
):
    """One checkpoint of 16 MB fits, two don't."""
    done = mpi_job(
        2, JOB, small_disk, 2_000_000, 3, *background, folder=tmp_path, timeout=100
    )
    assert done.stdout.startswith("saved 1\nfailed 2 the checkpoint of step 2 was not")
    assert "No space left on device" in done.stdout
    assert check_newest(small_disk, 2_000_000) == 1
    names = [path.name for path in small_disk.iterdir() if path.name != "latest"]
    assert names == ["save-00001-step-00000001"]
    if background:  # the last one failed while the program ended
        assert done.returncode != 0
        assert "the checkpoint of step 3 was not saved" in done.stderr
    else:
        assert (done.returncode, done.stderr) == (0, "")
