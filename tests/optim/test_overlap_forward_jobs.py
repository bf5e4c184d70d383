"""Jobs that end while parameters are still to arrive: none hangs, none ends with 0."""

import pytest

from tests.support.jobs import mpi_job

JOB = """
import os, signal, sys, time
import mlx.core as mx, mlx.nn as nn, mlx.optimizers as optim, numpy as np
import mlxdist
from mlxdist.world.world import World

how, world = sys.argv[1], mlxdist.init(timeout=4)
part = World(world.group, "mpi", world.duplicate(), overlaps=True)
mx.random.seed(0)
model = nn.Sequential(*(nn.Linear(33, 33) for _ in range(6)))
optimizer = mlxdist.DistributedOptimizer(
    optim.AdamW(1e-3), shard=True, world=part, bucket_size=5000
)
optimizer.init(model)
exchange, sent = part.peer_streams.exchange, []

def late(row, sizes):
    sent.append(row.size)
    if len(sent) == 2 and part.rank == 1:
        time.sleep(0.5)
        if how == "SIGKILL" or how == "SIGSTOP":
            os.kill(os.getpid(), getattr(signal, how))
        if how == "error":
            raise ValueError("boom")
    return exchange(row, sizes)

part.peer_streams.exchange = late
loss, gradients = nn.value_and_grad(model, lambda m, x: (m(x) ** 2).mean())(
    model, mx.ones((2, 33)) * (1 + part.rank)
)
optimizer.update(model, gradients)
if how == "sys.exit":
    sys.exit(0)
if how == "error after update" and part.rank == 1:
    raise ValueError("boom")
if how != "end":
    print(np.array(model.layers[5].weight).shape, flush=True)
"""

# In a process without failed computations: MLX counts them as queued for ever, and
# above its limit it waits for all that is queued.
ABOVE_MEMORY_LIMIT = """
import mlx.core as mx, mlx.nn as nn, mlx.optimizers as optim
import mlxdist
from mlxdist.world.world import World

world = mlxdist.init(timeout=4)
part = World(world.group, "mpi", world.duplicate(), overlaps=True)
model = nn.Linear(600, 300)
optimizer = mlxdist.DistributedOptimizer(
    optim.AdamW(1e-3), shard=True, world=part, bucket_size=2**18
)
optimizer.init(model)
gradients = model.trainable_parameters()
mx.eval(gradients)
limit = mx.set_memory_limit(1)
for _ in range(3):
    optimizer.update(model, gradients)
assert mx.set_memory_limit(limit) == 1
assert part.identical(model)
"""


def test_update_above_the_memory_limit_of_mlx_does_not_wait_for_its_own_messages(
    tmp_path,
):
    done = mpi_job(2, ABOVE_MEMORY_LIMIT, folder=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "how", [pytest.param("end", marks=pytest.mark.long), "sys.exit"]
)
def test_job_that_ends_before_its_parameters_arrived_succeeds(how, tmp_path):
    done = mpi_job(2, JOB, how, folder=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.long
@pytest.mark.parametrize(
    ("how", "text"),
    [
        ("SIGKILL", "signal 9"),
        ("SIGSTOP", "has lost touch with"),
        ("error", "ValueError: boom"),
        ("error after update", "ValueError: boom"),
    ],
)
def test_rank_that_fails_while_others_wait_for_parameters_ends_the_job(
    how, text, tmp_path
):
    done = mpi_job(2, JOB, how, folder=tmp_path)
    assert done.returncode != 0
    assert text in done.stderr + done.stdout
