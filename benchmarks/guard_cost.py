"""How much do the guard's checks add to a step of the quickstart's model, on 2 ranks?

    mlxdist bench guard_cost --json benchmarks/results/guard_cost.json

Updates with all checks and updates without any are interleaved. Checks are the header
that ranks compare (with the gradients' shapes and dtypes, the state's scalars and the
fingerprint), the finite check, and the flight recorder. The difference of the medians
is set against the whole step, with the checksums of one step in --check-every.
Checksums are timed separately. The watchdog cannot be turned off for single steps: its
part is the processor time of its thread.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import threading
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import common
import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten
from ranks.transformer import Transformer, loss_of
from rich.console import Console

import mlxdist
from mlxdist.comm.flight_recorder import Record, Recorder
from mlxdist.optim import grad_norm, step_checks

LEGEND = """\
median: ms of a call on the slowest rank; lower is better. The last row is the checks,
their checksums and the watchdog over a whole step without them."""
BOUND = 1  # percent of a step
RANKS = 2
ROWS, CONTEXT = 6, 128
GUARDED, UNGUARDED = "with", "without"


def main() -> None:
    args = parse_arguments()
    world = mlxdist.init()
    console = common.make_console() if world.is_root else None
    result = measure(Training(world, args.check_every), args, console)
    if console is not None:
        show(console, result, args.check_every)
        common.write_json(args.json, __doc__, result, world.size)


def parse_arguments() -> argparse.Namespace:
    parser = common.make_parser(__doc__)
    parser.add_argument(
        "--steps", type=common.positive, default=200, help="of each contender"
    )
    parser.add_argument("--check-every", type=int, default=100)
    args = parser.parse_args()
    if args.quick:
        args.steps = 10
    return args


class Training:
    """The parts of a training step of this rank."""

    def __init__(self, world: mlxdist.World, check_every: int):
        self.world, self.compute_seconds = world, list[float]()
        self._guarded = make_optimized(world, check_every)
        self._unguarded = make_optimized(unguarded_world(world), 0)
        remove_checks(self._unguarded.optimizer)
        self._value_and_grad = nn.value_and_grad(self._guarded.model, loss_of)
        random = np.random.default_rng(world.rank)
        self._rows = mx.array(random.integers(0, 255, (ROWS, CONTEXT + 1)))
        self._gradients: Any = None

    def compute(self) -> None:
        """Compute the gradients, which both contenders use."""
        began = time.perf_counter()
        self._gradients = self._value_and_grad(self._guarded.model, self._rows)[1]
        mx.eval(self._gradients)
        self.compute_seconds.append(time.perf_counter() - began)

    def guarded_update(self) -> None:
        self._guarded.update(self._gradients)

    def unguarded_update(self) -> None:
        self._unguarded.update(self._gradients)

    def checksum_seconds(self) -> float:
        """Return the median seconds of the checksums of all parameters."""
        flat = dict(tree_flatten(self._guarded.model.trainable_parameters()))
        mx.eval(flat)
        seconds = []
        for _ in range(10):
            began = time.perf_counter()
            step_checks.checksums(flat)
            seconds.append(time.perf_counter() - began)
        return statistics.median(seconds)


@dataclasses.dataclass
class Optimized:
    """A model and its optimizer."""

    model: nn.Module
    optimizer: mlxdist.DistributedOptimizer

    def update(self, gradients: Any) -> None:
        self.optimizer.update(self.model, gradients)
        mx.eval(self.model.parameters(), self.optimizer.state)


def make_optimized(world: mlxdist.World, check_every: int) -> Optimized:
    world.seed(0)
    model = Transformer()
    optimizer = mlxdist.DistributedOptimizer(
        optim.AdamW(1e-4), shard=True, check_every=check_every, world=world
    )
    optimizer.init(model)
    return Optimized(model, optimizer)


def remove_checks(optimizer: mlxdist.DistributedOptimizer) -> None:
    """Have an optimizer assume that all ranks call the same, and that norms are finite.

    To be called after `init`.
    """
    optimizer.pipelines.eager = dataclasses.replace(
        optimizer.pipelines.eager,
        agreement=step_checks.Unchecked(optimizer.world),
        norm=grad_norm.Unmeasured(),
    )


def unguarded_world(world: mlxdist.World) -> mlxdist.World:
    """Return a world of the same ranks whose flight recorder records nothing."""
    communicator = world.duplicate()
    return mlxdist.World(world.group, world.backend, communicator, SilentRecorder())


class SilentRecorder(Recorder):
    """A flight recorder that records nothing."""

    record = Record(0, "", "", 0, 0, "", 0, 0.0)

    def call(self, *_: object) -> AbstractContextManager[None]:
        return nullcontext()

    def phase(self, name: str) -> None:
        """Record nothing."""

    def waiting(self) -> AbstractContextManager[None]:
        return nullcontext()

    def started(self, *_: object) -> Record:
        return self.record


def measure(
    training: Training, args: argparse.Namespace, console: Console | None
) -> common.Result:
    contenders = {
        GUARDED: training.guarded_update,
        UNGUARDED: training.unguarded_update,
    }
    thread_began, began = watchdog_seconds(), time.perf_counter()
    with common.show_progress(console, 2 * args.steps + 6) as progress:
        samples = common.interleave(
            training.world,
            contenders,
            rounds=args.steps,
            warmup=3,
            before=training.compute,
            progress=progress,
        )
    watchdog = (watchdog_seconds() - thread_began) / (time.perf_counter() - began)
    checksum = training.checksum_seconds()
    result = common.record(samples, [(GUARDED, UNGUARDED)])
    compute = statistics.median(training.compute_seconds)
    guarded, bare = (result["summary"][name]["median"] for name in contenders)
    # --check-every 0 takes no checksums.
    checksums = checksum / args.check_every if args.check_every else 0.0
    added = (guarded - bare + checksums) / (compute + bare)
    return result | {
        "median_seconds_computing": compute,
        "checksum_seconds": checksum,
        "watchdog_share_of_a_core": watchdog,
        "added_share": added + watchdog,
    }


def watchdog_seconds() -> float:
    """Return the processor seconds of the watchdog's thread so far; Linux only."""
    (thread,) = (t for t in threading.enumerate() if t.name == "mlxdist watchdog")
    stat = Path(f"/proc/self/task/{thread.native_id}/stat").read_text()
    user, system = stat.rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def show(console: Console, result: common.Result, check_every: int) -> None:
    guarded, bare = (result["summary"][n]["median"] for n in (GUARDED, UNGUARDED))
    step = result["median_seconds_computing"] + bare
    checksum = result["checksum_seconds"]
    rows = [
        ("update with checks", f"{guarded * 1e3:.2f} ms"),
        ("update without", f"{bare * 1e3:.2f} ms"),
        ("whole step without", f"{step * 1e3:.1f} ms"),
        (f"checksums, every {check_every} steps", f"{checksum * 1e3:.2f} ms"),
        ("watchdog, of a core", f"{result['watchdog_share_of_a_core']:.3%}"),
        ("the guard adds in all", f"{result['added_share']:.2%}"),
    ]
    common.print_table(console, "cost of the guard", ["", "median"], rows, LEGEND)
    share = 100 * result["added_share"]
    text = common.bound_text("the guard adds", share, BOUND, "% to a step")
    common.print_verdict(console, text)


if __name__ == "__main__":
    main()
