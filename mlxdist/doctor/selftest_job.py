"""The job of `mlxdist test` on each rank: small training runs with a known result.

    python -m mlxdist.doctor.selftest_job compare | kill FOLDER | resume FOLDER

Gradients are small integers, whose float32 sums are exact, so that results can be
compared bit by bit with MLX's own optimizer on the mean gradients. Rank 0 prints each
report as a line of JSON: see SelftestReport.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np

from ..arrays.types import Array, Named
from ..checkpoint import load_checkpoint, save_checkpoint
from ..launcher.private_files import opened_folder
from ..launcher.probe import MARK
from ..optim import DistributedOptimizer
from ..world import World, init
from .reports import SelftestReport

STEPS = 5
CHECKPOINT_STEP = 2  # the last rank is killed after the next step

Shard = bool | Literal["elements", "tensors"]
SHARDS: tuple[Shard, ...] = (False, "elements", "tensors")
# A matrix, sizes not divisible by the number of ranks, a scalar, and a 16-bit tensor.
_SHAPES = {"embed": (257, 33), "weight": (129, 65), "bias": (65,), "scale": ()}


def initial_parameters() -> Named:
    """Return the initial parameters, the same on all ranks."""
    key = mx.random.key(11)
    parameters = {}
    for name, shape in _SHAPES.items():
        key, subkey = mx.random.split(key)
        parameters[name] = mx.random.normal(shape, key=subkey)
    parameters["half"] = mx.random.normal((31, 7), key=key).astype(mx.bfloat16)
    return parameters


def make_gradients(step: int, rank: int) -> Named:
    """Return a rank's gradients of a step: integers between -8 and 8."""
    generator = np.random.default_rng([step, rank])

    def draw(leaf: Array) -> Array:
        values = generator.integers(-8, 9, leaf.shape).astype(np.float32)
        return mx.array(values).astype(leaf.dtype)

    return {path: draw(leaf) for path, leaf in initial_parameters().items()}


def mean_gradients(step: int, ranks: int) -> Named:
    """Return the mean of all ranks' gradients, summed in float32 and rounded once."""
    gradients = [make_gradients(step, rank) for rank in range(ranks)]
    means = {}
    for path, leaf in gradients[0].items():
        total = sum(each[path].astype(mx.float32) for each in gradients)
        means[path] = (total / ranks).astype(leaf.dtype)
    return means


def make_optimizer() -> optim.Optimizer:
    return optim.AdamW(optim.linear_schedule(1e-2, 1e-3, STEPS))


def train_alone(ranks: int) -> Named:
    """Train with MLX's optimizer on the mean gradients of `ranks`, in this process."""
    parameters, optimizer = initial_parameters(), make_optimizer()
    for step in range(STEPS):
        parameters = optimizer.apply_gradients(mean_gradients(step, ranks), parameters)
        mx.eval(parameters)
    return parameters


def wrap(world: World, shard: Shard, parameters: Named) -> DistributedOptimizer:
    """Return an initialized distributed optimizer."""
    optimizer = DistributedOptimizer(make_optimizer(), shard=shard, world=world)
    optimizer.init(parameters)
    return optimizer


def train(
    optimizer: DistributedOptimizer, parameters: Named, steps: Iterable[int]
) -> Named:
    """Take steps with the distributed optimizer, and return the new parameters."""
    for step in steps:
        gradients = make_gradients(step, optimizer.world.rank)
        parameters = optimizer.apply_gradients(gradients, parameters)
        mx.eval(parameters)
    return parameters


def train_from_scratch(world: World, shard: Shard) -> Named:
    """Take all steps with the distributed optimizer."""
    parameters = initial_parameters()
    return train(wrap(world, shard, parameters), parameters, range(STEPS))


def largest_difference(parameters: Named, reference: Named) -> float:
    """Return 0.0 if all bits are equal, else the largest difference, at least 1e-30."""
    largest = 0.0
    for path, leaf in parameters.items():
        if not mx.array_equal(leaf, reference[path]).item():
            a, b = leaf.astype(mx.float32), reference[path].astype(mx.float32)
            difference = abs(a - b).max().item()
            if not math.isfinite(difference):
                difference = math.inf
            largest = max(largest, difference, 1e-30)
    return largest


def over_ranks(world: World, value: float) -> float:
    """Return the largest value of all ranks."""
    words = np.array([value]).view(np.uint64)
    return float(world.control.all_gather_words(words).view(np.float64).max())


def compare(world: World) -> SelftestReport:
    """Compare each strategy with training in one process, and with replicated state."""
    trained = [train_from_scratch(world, shard) for shard in SHARDS]
    alone, replicated = train_alone(world.size), trained[0]
    one_process = max(largest_difference(each, alone) for each in trained)
    sharded = max(largest_difference(each, replicated) for each in trained)
    return {
        "one_process": over_ranks(world, one_process),
        "sharded": over_ranks(world, sharded),
        "identical": all(world.identical(each) for each in trained),
        "device": mx.default_device().type.name,
    }


def kill(world: World, folder: str) -> SelftestReport:
    """Save a checkpoint, then kill the last rank. No rank returns.

    Raises:
        PermissionError: another user has made the folder first.
    """
    with opened_folder(Path(folder)):
        world.barrier()
    parameters = initial_parameters()
    optimizer = wrap(world, True, parameters)
    parameters = train(optimizer, parameters, range(CHECKPOINT_STEP))
    save_checkpoint(folder, CHECKPOINT_STEP, parameters, optimizer)
    print_report(world, {"saved": True})
    for step in range(CHECKPOINT_STEP, 1000):
        if step > CHECKPOINT_STEP and world.rank == world.size - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        parameters = train(optimizer, parameters, [step])
        time.sleep(0.01)
    return {}


def resume(world: World, folder: str) -> SelftestReport:
    """Resume from the checkpoint of `kill`, and compare with uninterrupted training."""
    uninterrupted = train_from_scratch(world, True)
    parameters = {p: mx.zeros_like(x) for p, x in initial_parameters().items()}
    optimizer = wrap(world, True, parameters)
    loaded = load_checkpoint(folder, parameters, optimizer)
    assert loaded is not None  # it is None only with missing_ok
    parameters = train(optimizer, parameters, range(loaded.step, STEPS))
    difference = largest_difference(parameters, uninterrupted)
    report: SelftestReport = {"checkpoint": over_ranks(world, difference)}
    world.barrier()
    shutil.rmtree(folder, ignore_errors=True)  # hosts may share it, or have one each
    return report


def print_report(world: World, report: SelftestReport) -> None:
    world.print(MARK + json.dumps(report))


def main() -> None:
    name, *arguments = sys.argv[1:]
    world = init(timeout=60)
    print_report(world, {"started": True})
    jobs: dict[str, Callable[..., SelftestReport]]
    jobs = {"compare": compare, "kill": kill, "resume": resume}
    print_report(world, jobs[name](world, *arguments))


if __name__ == "__main__":
    main()
