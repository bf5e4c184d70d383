"""Jobs that fail and that `mlxdist run --max-restarts` starts again."""

import json
import random
import re

import pytest

from tests.support import jobs

# With dropout, a schedule, and a sampler in mid-epoch.
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
    world.print("resumes from", step)
else:
    mlxdist.save_checkpoint("saves", 0, model, optimizer, sampler=sampler)
while step < 30:
    for batch in sampler:
        step += 1
        rows = mx.array(batch)
        loss, grads = nn.value_and_grad(model, loss_of)(model, x[rows], y[rows])
        optimizer.update(model, grads, weight=len(batch))
        world.print("step", step, world.mean(loss, weight=len(batch)).item().hex())
        if step % 4 == 0:
            mlxdist.save_checkpoint(
                "saves", step, model, optimizer, sampler=sampler, background=step > 9
            )
        if step == 30:
            break
"""
# Runs a script, and kills rank 1 once in each of the given steps.
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


@pytest.fixture
def start(run_command):
    """Runs a command line of `mlxdist run` on two ranks in a folder."""

    def start(*arguments, folder, timeout=100.0):
        command = [*run_command, "-n", "2", *arguments]
        return jobs.run(command, cwd=folder, timeout=timeout)

    return start


def start_with_two_kills(start, script, options, steps, folder, timeout=100.0):
    """Run a script that is killed in two steps, and started again each time."""
    (folder / "killer.py").write_text(KILLER)
    killer = ["--max-restarts", "2", "killer.py", f"{steps[0]},{steps[1]}"]
    done = start(*killer, script, *options, folder=folder, timeout=timeout)
    report = f"killed in {steps}\n{done.stdout}\n{done.stderr}"
    assert done.returncode == 0, report
    assert "2 of 2" in done.stderr, report
    return done, report


@pytest.mark.long
def test_restarted_run_ends_with_the_losses_of_an_uninterrupted_one(start, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
        (folder / "training.py").write_text(TRAINING)
    done = start("training.py", folder=whole)
    assert done.returncode == 0, done.stderr
    losses_by_step = dict(re.findall(r"^step (\d+) (\S+)$", done.stdout, re.M))
    assert len(losses_by_step) == 30
    draw = random.Random()
    steps = draw.randint(1, 14), draw.randint(15, 30)
    done, report = start_with_two_kills(start, "training.py", [], steps, killed)
    steps = re.findall(r"^step (\d+) (\S+)$", done.stdout, re.M)
    assert len(steps) > 30, report  # some steps were repeated
    assert all(losses_by_step[step] == loss for step, loss in steps), report


def losses(folder):
    lines = (folder / "runs" / "lm" / "metrics.jsonl").read_text().splitlines()
    keys = ("step", "train_loss", "val_loss")
    return [tuple(map(json.loads(line).get, keys)) for line in lines]


@pytest.mark.long
@pytest.mark.timeout(300)
def test_restarted_main_job_ends_with_the_losses_of_an_uninterrupted_one(
    start, tmp_path
):
    whole, killed, data = (tmp_path / name for name in ("whole", "killed", "data"))
    for folder in (whole, killed, data):
        folder.mkdir()
    for index in range(40):
        (data / f"{index}.py").write_text(f"text = {index}\n" * 200)
    script = str(jobs.LAUNCH / "train_lm.py")
    # Checkpoints at reports, whose means then are over the same steps.
    options = ["--batch-size", "2", "--steps", "20", "--checkpoint-every", "10"]
    options += ["--data", str(data)]
    done = start(script, *options, folder=whole, timeout=100)
    assert done.returncode == 0, done.stderr
    draw = random.Random()
    steps = draw.randint(1, 10), draw.randint(11, 20)
    _, report = start_with_two_kills(start, script, options, steps, killed, timeout=200)
    assert losses(killed) == losses(whole), report


def test_restarts_end_after_max_restarts(run):
    source = "import sys; print('on'); sys.exit(3)"
    done = run(source, ranks=2, options=["--max-restarts", "2"])
    assert done.returncode == 3
    # Two ranks at each of three starts, unless one ended the job before the other.
    assert 3 <= done.stdout.count("on") <= 6
    assert done.stderr.count("starts it again") == 2


def test_restarts_leave_out_a_wrong_command_line(run):
    done = run("raise SystemExit(2)", ranks=2, options=["--max-restarts", "2"])
    assert done.returncode == 2
    assert "starts it again" not in done.stderr
