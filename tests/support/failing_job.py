"""Job that trains for six steps, in which one rank fails in a given way and place.

Arguments: HOW WHERE RANK TIMEOUT. See failures.py, which runs it. It prints the time of
the failure as `failing SECONDS`. MLXDIST_BACKEND names what carries the data.
"""

import os
import signal
import sys
import time

import mlx.core as mx
import mlx.optimizers as optim

import mlxdist
from mlxdist.checkpoint.commit import SaveJob
from mlxdist.comm.native import Lazy
from mlxdist.comm.progress import Progress

how, where, failing_rank = sys.argv[1], sys.argv[2], int(sys.argv[3])
world = mlxdist.init(timeout=float(sys.argv[4]))
armed = False


def fail():
    """Fail, on the failing rank and in the fourth step."""
    if not armed or world.rank != failing_rank:
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


def failing(function):
    """Return a function that fails before it calls another one."""

    def fail_first(*arguments, **options):
        fail()
        return function(*arguments, **options)

    return fail_first


class Adam(optim.Adam):
    elementwise = True

    def apply_single(self, gradient, parameter, state):
        if where == "optimizer":
            fail()
        return super().apply_single(gradient, parameter, state)


if where == "exchange":
    Progress.wait = failing(Progress.wait)
    Lazy.finish = failing(Lazy.finish)

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
    if where == "checkpoint" and armed:  # its file is written, but not committed
        SaveJob.commit = failing(SaveJob.commit)
        mlxdist.save_checkpoint("saves", step, parameters, optimizer)
    if where == "gather" and armed:
        world.control.broadcast = failing(world.control.broadcast)
        optimizer.gather_state()
if where == "exit":
    armed = True
    if world.rank != failing_rank:
        world.barrier()
    fail()
print("finished", world.rank, flush=True)
