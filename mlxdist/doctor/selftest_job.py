"""What `mlxdist test` runs on the ranks: small training runs with a known result.

    python -m mlxdist.doctor.selftest_job equal | killed FOLDER | resumed FOLDER

Gradients are small whole numbers, whose sums are exact, so that results can be compared
bit by bit with MLX's own optimizer on the mean. Rank 0 prints a line of JSON.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten, tree_map

import mlxdist
from mlxdist.checkpoint.api import load_checkpoint, save_checkpoint
from mlxdist.launcher.probe import MARK

STEPS = 5
HALF = 2  # steps before the checkpoint; in the one after it the last rank dies
# One 16-bit tensor, sizes that N won't divide, and what elements and tensors cut apart.
_SHAPES = {"embed": (257, 33), "weight": (129, 65), "bias": (65,), "scale": ()}


def parameters() -> dict[str, Any]:
    """The same on every rank."""
    key = mx.random.key(11)
    found = {}
    for name, shape in _SHAPES.items():
        key, now = mx.random.split(key)
        found[name] = mx.random.normal(shape, key=now)
    found["half"] = mx.random.normal((31, 7), key=key).astype(mx.bfloat16)
    return found


def gradients(step: int, rank: int) -> dict[str, Any]:
    """A rank's whole numbers of a step."""
    numbers = np.random.default_rng([step, rank])

    def draw(leaf: Any) -> Any:
        values = numbers.integers(-8, 9, leaf.shape).astype(np.float32)
        return mx.array(values).astype(leaf.dtype)

    return dict(tree_map(draw, parameters()))


def mean(step: int, size: int) -> dict[str, Any]:
    """What the ranks' gradients average to: added in float32 and rounded once."""

    def add(*leaves: Any) -> Any:
        total = sum(leaf.astype(mx.float32) for leaf in leaves)
        return (total / size).astype(leaves[0].dtype)

    return dict(tree_map(add, *(gradients(step, rank) for rank in range(size))))


def by_one_process(size: int) -> dict[str, Any]:
    """MLX's optimizer alone, on the means."""
    held, optimizer = parameters(), make_optimizer()
    for step in range(STEPS):
        held = optimizer.apply_gradients(mean(step, size), held)
        mx.eval(held)
    return held


def make_optimizer() -> Any:
    return optim.AdamW(optim.linear_schedule(1e-2, 1e-3, STEPS))


def train(world: mlxdist.World, shard: Any, steps: range, held: Any = None) -> Any:
    """Some steps with a DistributedOptimizer; the parameters and the optimizer."""
    held = held or parameters()
    optimizer = mlxdist.DistributedOptimizer(make_optimizer(), shard=shard, world=world)
    optimizer.init(held)
    return go_on(world, held, optimizer, steps), optimizer


def go_on(world: mlxdist.World, held: Any, optimizer: Any, steps: range) -> Any:
    for step in steps:
        held = optimizer.apply_gradients(gradients(step, world.rank), held)
        mx.eval(held)
    return held


def difference(one: Any, other: Any) -> float:
    """0.0 where all bits are equal; else the largest difference, at least 1e-30."""
    others, worst = dict(tree_flatten(other)), 0.0
    for path, leaf in tree_flatten(one):
        if not mx.array_equal(leaf, others[path]).item():
            a, b = leaf.astype(mx.float32), others[path].astype(mx.float32)
            gap = abs(a - b).max().item()
            worst = max(worst, gap if math.isfinite(gap) else math.inf, 1e-30)
    return worst


def equal(world: mlxdist.World) -> dict[str, Any]:
    """Each way to keep the state against one process, and against each other."""
    ways = {"replicated": False, "elements": "elements", "tensors": "tensors"}
    results = {way: train(world, shard, range(STEPS))[0] for way, shard in ways.items()}
    alone = by_one_process(world.size)
    first = results["replicated"]
    own = {
        "one process": max(difference(held, alone) for held in results.values()),
        "sharded": max(difference(held, first) for held in results.values()),
    }
    every = [
        json.loads(part)
        for part in world.control.all_gather_bytes(json.dumps(own).encode())
    ]
    worst = {name: max(one[name] for one in every) for name in own}
    same = all(world.identical(held) for held in results.values())
    return {**worst, "identical": same, "device": str(mx.default_device())}


def killed(world: mlxdist.World, folder: str) -> dict[str, Any]:
    """Saves a checkpoint, then the last rank kills itself; nobody gets to the end."""
    held, optimizer = train(world, True, range(HALF))
    save_checkpoint(folder, HALF, held, optimizer)
    world.print(MARK + json.dumps({"saved": True}))
    for step in range(HALF, 1000):
        if step > HALF and world.rank == world.size - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        held = go_on(world, held, optimizer, range(step, step + 1))
        time.sleep(0.01)
    return {}


def resumed(world: mlxdist.World, folder: str) -> dict[str, Any]:
    """Goes on from what `killed` saved, and compares with a run that was not killed."""
    straight, _ = train(world, True, range(STEPS))
    held = tree_map(mx.zeros_like, parameters())
    optimizer = mlxdist.DistributedOptimizer(make_optimizer(), shard=True, world=world)
    optimizer.init(held)
    loaded = load_checkpoint(folder, held, optimizer)
    assert loaded is not None  # only missing_ok makes it None
    held = go_on(world, held, optimizer, range(loaded.step, STEPS))
    own = np.array([difference(held, straight)]).view(np.uint64)
    every = world.control.all_gather_words(own).view(np.float64)
    world.barrier()
    shutil.rmtree(folder, ignore_errors=True)  # each host's own, or the one they share
    return {"checkpoint": float(every.max())}


def main() -> None:
    what, *arguments = sys.argv[1:]
    world = mlxdist.init(timeout=60)
    world.print(MARK + json.dumps({"up": True}))
    parts: dict[str, Callable[..., dict[str, Any]]]
    parts = {"equal": equal, "killed": killed, "resumed": resumed}
    world.print(MARK + json.dumps(parts[what](world, *arguments)))


if __name__ == "__main__":
    main()
