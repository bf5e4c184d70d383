"""A world can be closed: nothing of it is left, and another one may follow."""

import threading

import mlx.core as mx
import pytest

import mlxdist
from mlxdist.world import World
from tests.support.jobs import mpi_job

# Also with the thread that overlaps communication, and a split.
CLOSE = """
import os, signal, sys, threading
import mlx.core as mx, mlx.optimizers as optim
import mlxdist

def resources():
    hooks = (sys.excepthook, signal.getsignal(signal.SIGTERM))
    return threading.active_count(), hooks, sorted(os.listdir("/dev/fd"))

hook = sys.excepthook
def train(world):
    part = world.split(0)
    for w in (world, part):
        optimizer = mlxdist.DistributedOptimizer(optim.SGD(1.0), shard=True, world=w)
        grads = {"w": mx.full((5,), float(w.rank))}
        result = optimizer.apply_gradients(grads, {"w": mx.zeros(5)})
        assert result["w"].tolist() == [-0.5] * 5
    return optimizer

counts = []
for timeout in (300, 20, 30, 40):
    with mlxdist.init(timeout=timeout) as world:
        assert world.size == 2
        optimizer = train(world)
        assert threading.active_count() > 1
    counts.append(resources())
    world.close()
assert counts[1] == counts[2] == counts[3], counts
assert counts[0][:2] == (1, (hook, signal.SIG_DFL))
for call in (world.barrier, lambda: world.split(0),
             lambda: optimizer.apply_gradients({"w": mx.ones(5)}, {"w": mx.ones(5)})):
    try:
        call()
    except RuntimeError as error:
        assert "closed" in str(error)
    else:
        raise AssertionError("a closed world was used")
print("closed", flush=True)
assert mlxdist.init().mean(1.0) == 1.0
"""


def test_close_leaves_no_thread_hook_or_descriptor(tmp_path):
    result = mpi_job(2, CLOSE, folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["closed", "closed"]


@pytest.mark.mpi
def test_close_of_a_split_ends_its_thread_and_leaves_the_world(world, mpi_group):
    before = {*threading.enumerate()}
    part = World(mpi_group, "mpi", world.duplicate(), overlaps=True)
    (thread,) = {*threading.enumerate()} - before
    averaged = mlxdist.average_gradients({"w": mx.ones(3)}, world=part)
    assert averaged["w"].tolist() == [1.0] * 3
    with part:
        assert part.mean(2.0) == 2.0
    assert not thread.is_alive()
    with pytest.raises(RuntimeError, match="this world is closed"):
        part.barrier()
    with pytest.raises(RuntimeError, match="closed"):
        part.transport("host", sharded=True)
    part.close()
    with world.split(0):
        pass
    world.barrier()  # also where the split has all ranks


@pytest.mark.mpi
def test_close_closes_the_worlds_that_were_split_from_it(world):
    part = world.split(0)
    inner = part.split(0)
    part.close()
    assert inner.is_closed
    with pytest.raises(RuntimeError, match="this world is closed"):
        inner.mean(1.0)


@pytest.mark.mpi(min_size=2)
def test_close_while_others_do_something_else_is_refused_on_all_ranks(world):
    part = world.split(0)
    with pytest.raises(mlxdist.MismatchError, match=r"rank 0: World\.close"):
        (part.close if part.rank == 0 else part.barrier)()
    assert part.mean(1.0) == 1.0
    part.close()
