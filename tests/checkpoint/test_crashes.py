"""Jobs that are killed while they save: what they had saved before is whole."""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import mlx.core as mx
import mlx.optimizers as optim
import pytest

import mlxdist
from tests.support.jobs import ROOT, end_session, mpi_job, mpirun, processes, run, start

# Parameters and state that tell the step: SGD with momentum 1 and gradients of 1.
JOB = """
import sys
import mlx.core as mx, mlx.optimizers as optim
import mlxdist

folder, size, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
world = mlxdist.init(timeout=20)
optimizer = mlxdist.DistributedOptimizer(optim.SGD(-1.0, momentum=1.0), shard=True)
own = {"w": mx.zeros(size), "b": mx.zeros((7, 3))}
optimizer.init(own)
loaded = mlxdist.load_checkpoint(folder, own, optimizer, missing_ok=True)
step = loaded.step if loaded else 0
ones = {"w": mx.ones(size), "b": mx.ones((7, 3))}
while step < steps:
    step += 1
    own = optimizer.apply_gradients(ones, own)
    mx.eval(own)
    background = step % 3 == 0 and "--background" in sys.argv
    try:
        mlxdist.save_checkpoint(
            folder, step, own, optimizer, {"step": step}, keep=2, background=background
        )
        world.print("saves" if background else "saved", step)
    except mlxdist.CheckpointError as error:
        world.print("failed", step, error)
"""


def check(folder, size):
    """The step of the last checkpoint, which is whole, as its values say."""
    own = {"w": mx.zeros(size), "b": mx.zeros((7, 3))}
    ours = mlxdist.DistributedOptimizer(optim.SGD(-1.0, momentum=1.0))
    loaded = mlxdist.load_checkpoint(folder, own, ours)
    assert loaded.skipped == ()
    step = loaded.step
    assert loaded.extra == {"step": step}
    assert ours.step.item() == step
    for path in ("w", "b"):
        assert mx.all(own[path] == step * (step + 1) / 2)
        assert mx.all(ours.state[path]["v"] == step)
    return step


def kill_while_saving(tmp_path, draw, size, ranks=2):
    """Starts the job, kills a rank or mpirun at some moment; the steps it told of."""
    script = tmp_path / "job.py"
    script.write_text(JOB)
    words = [tmp_path / "saves", size, 10**6, "--background"]
    launcher = mpirun(ranks) if ranks > 1 else []
    job = start([*launcher, sys.executable, str(script), *map(str, words)])
    try:
        told = [job.stdout.readline()]
        assert told[0].startswith("save"), job.stderr.read()
        time.sleep(draw.uniform(0, 0.4))
        ranks = [pid for pid in processes(job.pid) if is_rank(pid)]
        os.kill(draw.choice([job.pid, *ranks]), signal.SIGKILL)
        told += job.stdout.read().splitlines()
        deadline = time.monotonic() + 20
        while processes(job.pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not processes(job.pid)
    finally:
        end_session(job.pid)
        job.stdout.close()
        job.stderr.close()
        job.wait()
    return [
        int(line.split()[1]) for line in told if re.fullmatch(r"saved \d+\n?", line)
    ]


def is_rank(pid):
    with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
        return b"job.py" in file.read() and b"mpirun" not in open_words(pid)
    return False


def open_words(pid):
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        return file.read().split(b"\0")[0]


def many_kills(tmp_path, seed, ranks, size):
    """Kills jobs of so many ranks each; how many were killed within a save."""
    draw = random.Random(seed)
    halves = 0
    for count in ranks:
        told = kill_while_saving(tmp_path, draw, size, count)
        step = check(tmp_path / "saves", size)
        # A save that was told is there; one more may have become whole.
        assert step >= max(told, default=1)
        halves += any(path.name[0] == "." for path in (tmp_path / "saves").iterdir())
    return halves


def test_kills_while_saving(tmp_path):
    ranks = [2, 1] * 5  # one rank is the same code, and starts faster
    assert many_kills(tmp_path, 1, ranks, 3_000_000)  # some hit a save under way


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(4))
def test_200_kills_while_saving(seed, tmp_path):
    size = random.Random(seed).randrange(4_000_000)
    halves = many_kills(tmp_path, 10 + seed, [2] * 50, size)
    print(f"\n50 of 50 loaded; {halves} had hit a save under way")


def test_without_a_kill_the_job_saves(tmp_path):
    """The other cases prove nothing if this fails."""
    done = mpi_job(2, JOB, tmp_path / "saves", 1000, 4, folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == [
        "saved",
        "1",
        "saved",
        "2",
        "saved",
        "3",
        "saved",
        "4",
    ]
    assert check(tmp_path / "saves", 1000) == 4


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of 24 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)]
    if os.geteuid() or not shutil.which("mount") or subprocess.run(mount).returncode:
        pytest.skip("mounting a small disk takes root on Linux")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("background", [(), ("--background",)])
def test_a_full_disk(background, small_disk, tmp_path):
    """One checkpoint of 16 MB fits, two don't."""
    done = mpi_job(
        2, JOB, small_disk, 2_000_000, 3, *background, folder=tmp_path, timeout=60
    )
    assert done.stdout.startswith("saved 1\nfailed 2 the checkpoint of step 2 was not")
    assert "No space left on device" in done.stdout
    assert check(small_disk, 2_000_000) == 1
    names = [path.name for path in small_disk.iterdir() if path.name != "latest"]
    assert names == ["save-00001-step-00000001"]  # and nothing half written
    if background:  # the last one failed while the program ended
        assert done.returncode != 0
        assert "the checkpoint of step 3 was not saved" in done.stderr
    else:
        assert (done.returncode, done.stderr) == (0, "")


RUN = [sys.executable, "-m", "mlxdist.cli", "run", "-n", "2"]
# Dropout, a schedule, a sampler in the middle of an epoch, gradients of real numbers.
TRAINING = """
import mlx.core as mx, mlx.nn as nn, mlx.optimizers as optim
import mlxdist

world = mlxdist.init()
world.seed(3)
model = nn.Sequential(nn.Linear(6, 40), nn.Dropout(0.3), nn.Linear(40, 1))
optimizer = mlxdist.DistributedOptimizer(
    optim.AdamW(optim.cosine_decay(1e-2, 30)), shard=True, max_norm=1.0
)
optimizer.init(model)
x = mx.random.normal((50, 6), key=mx.random.key(1))
y = x.sum(axis=1, keepdims=True)
sampler = mlxdist.ShardedSampler(50, world=world, batch_size=4)
loss_of = lambda model, x, y: nn.losses.mse_loss(model(x), y)
step = 0
if world.restarts:
    loaded = mlxdist.load_checkpoint("saves", model, optimizer, sampler=sampler)
    step = loaded.step
    world.print("goes on from", step)
else:
    mlxdist.save_checkpoint("saves", 0, model, optimizer, sampler=sampler)
while step < 30:
    for batch in sampler:
        step += 1
        own = mx.array(batch)
        loss, grads = nn.value_and_grad(model, loss_of)(model, x[own], y[own])
        optimizer.update(model, grads, weight=len(batch))
        world.print("step", step, world.mean(loss, weight=len(batch)).item().hex())
        if step % 4 == 0:
            mlxdist.save_checkpoint(
                "saves", step, model, optimizer, sampler=sampler, background=step > 9
            )
        if step == 30:
            break
"""
# Kills rank 1 in the first starts, in the steps that are named.
KILLER = """
import os, runpy, signal, sys
import mlxdist

restart = int(os.environ["MLXDIST_RESTARTS"])
fatal = dict(enumerate(map(int, sys.argv.pop(1).split(",")))).get(restart)
update = mlxdist.DistributedOptimizer.update
def failing(self, *arguments, **options):
    update(self, *arguments, **options)
    if self.world.rank == 1 and self.step.item() == fatal:
        os.kill(os.getpid(), signal.SIGKILL)
mlxdist.DistributedOptimizer.update = failing
sys.argv.pop(0)
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def killed_twice(script, options, steps, folder, timeout):
    """Runs a script that is killed in two steps, and started again each time."""
    (folder / "killer.py").write_text(KILLER)
    command = [*RUN, "--max-restarts", "2", "killer.py", f"{steps[0]},{steps[1]}"]
    done = run([*command, script, *options], cwd=folder, timeout=timeout)
    told = f"killed in {steps}\n{done.stdout}\n{done.stderr}"
    assert done.returncode == 0, told
    assert "mlxdist run: starts it again, 2 of 2" in done.stderr, told
    return done, told


def test_a_killed_run_is_restarted_and_ends_with_the_same_loss(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
        (folder / "training.py").write_text(TRAINING)
    done = run([*RUN, "training.py"], cwd=whole)
    assert done.returncode == 0, done.stderr
    wanted = dict(re.findall(r"^step (\d+) (\S+)$", done.stdout, re.M))
    assert len(wanted) == 30
    draw = random.Random()
    steps = draw.randint(1, 14), draw.randint(15, 30)
    done, told = killed_twice("training.py", [], steps, killed, timeout=60)
    again = re.findall(r"^step (\d+) (\S+)$", done.stdout, re.M)
    assert len(again) > 30, told  # some steps were taken twice
    assert all(wanted[step] == loss for step, loss in again), told


def losses(folder):
    lines = (folder / "runs" / "lm" / "metrics.jsonl").read_text().splitlines()
    entries = map(json.loads, lines)
    return [(one["step"], one.get("loss"), one.get("val_loss")) for one in entries]


@pytest.mark.long
@pytest.mark.timeout(300)
def test_the_main_job_is_killed_and_ends_with_the_same_losses(tmp_path):
    whole, killed, data = (tmp_path / name for name in ("whole", "killed", "data"))
    for folder in (whole, killed, data):
        folder.mkdir()
    for index in range(40):
        (data / f"{index}.py").write_text(f"text = {index}\n" * 200)
    script = str(ROOT / "launch" / "train_lm.py")
    options = ["--batch-size", "2", "--steps", "14", "--checkpoint-every", "3"]
    options += ["--data", str(data)]
    done = run([*RUN, script, *options], cwd=whole, timeout=100)
    assert done.returncode == 0, done.stderr
    draw = random.Random()
    steps = draw.randint(1, 7), draw.randint(8, 14)
    _, told = killed_twice(script, options, steps, killed, timeout=200)
    assert losses(killed) == losses(whole), told


def test_restarts_come_to_an_end(tmp_path):
    (tmp_path / "fail.py").write_text("import sys; print('on'); sys.exit(3)")
    done = run([*RUN, "--max-restarts", "2", "fail.py"], cwd=tmp_path)
    assert done.returncode == 3
    assert done.stdout.count("on") in (
        3,
        4,
        5,
        6,
    )  # each start, until one rank ended it
    assert done.stderr.count("starts it again") == 2
