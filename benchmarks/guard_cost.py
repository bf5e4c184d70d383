"""How much do the guard's checks add to a step of the quickstart's model, on 2 ranks?

    mlxdist bench guard_cost --json benchmarks/results/guard_cost.json

Updates with all checks (the header that ranks compare, the finite check, the flight
recorder) and updates without them are interleaved. The difference of their medians is
set against the whole step, with the checksums of one step in --check-every. Checksums
are timed separately. The watchdog cannot be turned off for single steps: its part is
the processor time of its thread.
"""

from __future__ import annotations

import argparse
import os
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import common
import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten
from ranks.transformer import Transformer, loss_of
from rich.console import Console

import mlxdist
from mlxdist.comm import flight_recorder
from mlxdist.optim import checks

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
        world.seed(0)
        self.world, self.model = world, Transformer()
        self.optimizer = mlxdist.DistributedOptimizer(
            optim.AdamW(1e-4), shard=True, check_every=check_every
        )
        self.optimizer.init(self.model)
        self.compute_seconds: list[float] = []
        self._value_and_grad = nn.value_and_grad(self.model, loss_of)
        random = np.random.default_rng(world.rank)
        self._rows = mx.array(random.integers(0, 255, (ROWS, CONTEXT + 1)))
        self._gradients: Any = None

    def compute(self) -> None:
        began = time.perf_counter()
        self._gradients = self._value_and_grad(self.model, self._rows)[1]
        mx.eval(self._gradients)
        self.compute_seconds.append(time.perf_counter() - began)

    def guarded_update(self) -> None:
        self.optimizer.update(self.model, self._gradients)
        mx.eval(self.model.parameters(), self.optimizer.state)

    def unguarded_update(self) -> None:
        with unguarded(self.optimizer):
            self.guarded_update()

    def checksum_seconds(self) -> float:
        """Return the median seconds of the checksums of all parameters."""
        flat = dict(tree_flatten(self.model.trainable_parameters()))
        mx.eval(flat)
        seconds = []
        for _ in range(10):
            began = time.perf_counter()
            checks.checksums(flat)
            seconds.append(time.perf_counter() - began)
        return statistics.median(seconds)


@contextmanager
def unguarded(optimizer: Any) -> Iterator[None]:
    """Take steps without checks: ranks assume that all of them call the same."""
    record = flight_recorder.Record(0, "", "", 0, 0, "", 0, 0.0)

    def agree(comm: Any, *_: Any, **__: Any) -> list[float]:
        return [1.0] * comm.size

    def no_problem(*_: Any) -> None:
        return None

    def no_scalars(_: Any) -> list[str]:
        return []

    def started(*_: Any, **__: Any) -> flight_recorder.Record:
        return record

    check_every, optimizer.check_every = optimizer.check_every, 0
    measures, optimizer._measures = optimizer._measures, False
    with (
        mock.patch.object(checks, "agree", agree),
        mock.patch.object(checks, "gradient_problem", no_problem),
        mock.patch.object(checks, "state_scalars", no_scalars),
        mock.patch.object(flight_recorder.Recorder, "started", started),
    ):
        yield
    optimizer.check_every, optimizer._measures = check_every, measures


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
    common.print_table(console, "cost of the guard", ["", "median"], rows)


if __name__ == "__main__":
    main()
