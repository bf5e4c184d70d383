"""What the guard costs a step of the main job: its byte-level transformer, 2 ranks.

    mlxdist run -n 2 benchmarks/guard_cost.py --json benchmarks/results/guard_cost.json

Steps with all checks (the header that ranks compare, the finite check, the flight
recorder) and without them alternate in one run, so that both meet the same noise. The
difference is taken of the update alone, which begins on all ranks at once, and set
against the whole step. Checksums are timed by themselves; of the watchdog, which can't
be turned off for a step, the processor time of its thread is read.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import threading
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path
from unittest import mock

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "launch"))
from model import Transformer, loss_of

import mlxdist
from mlxdist import checks, recorder

CONTEXT = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200, help="of each kind")
    parser.add_argument("--check-every", type=int, default=100)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    world = mlxdist.init()
    world.seed(0)
    model = Transformer()
    optimizer = mlxdist.DistributedOptimizer(
        optim.AdamW(1e-4), shard=True, check_every=args.check_every
    )
    optimizer.init(model)
    value_and_grad = nn.value_and_grad(model, loss_of)
    numbers = np.random.default_rng(world.rank)
    rows = mx.array(numbers.integers(0, 255, (6, CONTEXT + 1)))

    def step(checked) -> tuple[float, float]:
        began = time.perf_counter()
        _, gradients = value_and_grad(model, rows)
        mx.eval(gradients)
        computed = time.perf_counter() - began
        world.barrier()
        began = time.perf_counter()
        with checked:
            optimizer.update(model, gradients)
            mx.eval(model.parameters(), optimizer.state)
        return computed, time.perf_counter() - began

    for _ in range(3):
        step(nullcontext())
    samples: dict[str, list[tuple[float, float]]] = {"with": [], "without": []}
    thread, began = watchdog_seconds(), time.perf_counter()
    for index in range(args.steps):
        # Which goes first alternates too.
        for kind in ("with", "without") if index % 2 else ("without", "with"):
            bare = unguarded(optimizer) if kind == "without" else nullcontext()
            samples[kind].append(step(bare))
    watched = (watchdog_seconds() - thread) / (time.perf_counter() - began)
    checksum = seconds_of_checksums(model)
    if not world.is_root:
        return
    medians = {
        kind: tuple(map(statistics.median, zip(*times, strict=True)))
        for kind, times in samples.items()
    }
    update, bare_update = medians["with"][1], medians["without"][1]
    step_seconds = medians["without"][0] + bare_update
    added = (update - bare_update + checksum / args.check_every) / step_seconds
    result = {
        "command": command(world.size),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "versions": {"mlx": mx.__version__, "python": platform.python_version()},
        "median_seconds_computing_and_updating": medians,
        "checksum_seconds": checksum,
        "watchdog_share_of_a_core": watched,
        "added_share": added + watched,
        "samples": samples,
    }
    print(
        f"update {update * 1e3:.2f} ms with checks, {bare_update * 1e3:.2f} without, "
        f"of a step of {step_seconds * 1e3:.1f}; medians of {args.steps}"
    )
    print(f"checksums {checksum * 1e3:.2f} ms every {args.check_every} steps")
    print(f"watchdog {watched:.3%} of a core")
    print(f"the guard adds {added + watched:.2%} in all")
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


def command(ranks: int) -> str:
    """What was typed, without where the checkout lies."""
    script = f"benchmarks/{Path(__file__).name}"
    return " ".join(["mlxdist run -n", str(ranks), script, *sys.argv[1:]])


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
