"""What does the guard cost a step of the quickstart's transformer, on 2 ranks?

    mlxdist bench guard_cost --json benchmarks/results/guard_cost.json

Steps with all checks (the header that ranks compare, the finite check, the flight
recorder) and without them alternate in one run, so that both meet the same noise. The
difference is taken of the update alone, which begins on all ranks at once, and set
against the whole step. Checksums are timed by themselves; of the watchdog, which can't
be turned off for a step, the processor time of its thread is read.
"""

import argparse
import os
import statistics
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import common
import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from common.progress import Progress

sys.path.insert(0, str(common.ROOT / "launch"))
from model import Transformer, loss_of

import mlxdist
from mlxdist.comm import flight_recorder as recorder
from mlxdist.optim import checks

RANKS = 2
CONTEXT = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--steps", type=common.positive, default=200, help="of each kind"
    )
    parser.add_argument("--check-every", type=int, default=100)
    common.add_options(parser)
    args = parser.parse_args()
    rounds = 10 if args.quick else args.steps

    world = mlxdist.init()
    out = common.console() if world.is_root else None
    world.seed(0)
    model = Transformer()
    optimizer = mlxdist.DistributedOptimizer(
        optim.AdamW(1e-4), shard=True, check_every=args.check_every
    )
    optimizer.init(model)
    value_and_grad = nn.value_and_grad(model, loss_of)
    numbers = np.random.default_rng(world.rank)
    rows = mx.array(numbers.integers(0, 255, (6, CONTEXT + 1)))
    gradients, computing = {}, []

    def compute() -> None:
        began = time.perf_counter()
        gradients.clear()
        gradients.update(value_and_grad(model, rows)[1])
        mx.eval(gradients)
        computing.append(time.perf_counter() - began)

    def update() -> None:
        optimizer.update(model, gradients)
        mx.eval(model.parameters(), optimizer.state)

    def bare_update() -> None:
        with unguarded(optimizer):
            update()

    kinds = {"with": update, "without": bare_update}
    thread, began = watchdog_seconds(), time.perf_counter()
    with Progress(out, 2 * rounds + 6) as progress:
        samples = common.interleave(
            world, kinds, rounds=rounds, warmup=3, before=compute, progress=progress
        )
    watched = (watchdog_seconds() - thread) / (time.perf_counter() - began)
    checksum = seconds_of_checksums(model)
    if not world.is_root:
        return
    result = common.record(samples, [("with", "without")])
    computed = statistics.median(computing)
    guarded, bare = (result["summary"][kind]["median"] for kind in kinds)
    added = (guarded - bare + checksum / args.check_every) / (computed + bare)
    result |= {
        "median_seconds_computing": computed,
        "checksum_seconds": checksum,
        "watchdog_share_of_a_core": watched,
        "added_share": added + watched,
    }
    rows = [
        ("update with checks", f"{guarded * 1e3:.2f} ms"),
        ("update without", f"{bare * 1e3:.2f} ms"),
        ("whole step without", f"{(computed + bare) * 1e3:.1f} ms"),
        (f"checksums, every {args.check_every} steps", f"{checksum * 1e3:.2f} ms"),
        ("watchdog, of a core", f"{watched:.3%}"),
        ("the guard adds in all", f"{added + watched:.2%}"),
    ]
    common.print_table(out, "cost of the guard", ["", "median"], rows)
    if args.json:
        common.write_json(args.json, __doc__.splitlines()[0], result, world.size)


@contextmanager
def unguarded(optimizer):
    """As if there were no checks: ranks trust each other."""
    nothing = mock.MagicMock(return_value=recorder.Record(0, "", "", 0, 0, "", 0, 0.0))

    def trust(comm, call, detail, describe, **_):
        return [1.0] * comm.size

    every, optimizer.check_every = optimizer.check_every, 0
    measures, optimizer._measures = optimizer._measures, False
    with (
        mock.patch.object(checks, "agree", trust),
        mock.patch.object(recorder.Recorder, "started", nothing),
    ):
        yield
    optimizer.check_every, optimizer._measures = every, measures


def seconds_of_checksums(model) -> float:
    flat = dict(nn.utils.tree_flatten(model.trainable_parameters()))
    mx.eval(flat)
    times = []
    for _ in range(10):
        began = time.perf_counter()
        checks.checksums(flat)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def watchdog_seconds() -> float:
    """Processor time of the watchdog's thread so far; Linux only."""
    (thread,) = (t for t in threading.enumerate() if t.name == "mlxdist watchdog")
    stat = Path(f"/proc/self/task/{thread.native_id}/stat").read_text()
    user, system = stat.rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
