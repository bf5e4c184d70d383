"""How much longer do steps take while a checkpoint is written behind them?

    mlxdist bench -n 2 background --json benchmarks/results/background.json

The quickstart's transformer with sharded AdamW, on 2 ranks. A window is as many steps
as a save takes, and one more; windows with a save behind them and windows with none
take turns in one run. The call itself, which copies what this rank writes, is timed by
itself: any save costs as much.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path
from typing import Any

import common
import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from common.folder import shared_folder
from common.progress import Progress
from mlx.utils import tree_flatten

sys.path.insert(0, str(common.ROOT / "launch"))
from model import Transformer, loss_of

import mlxdist
from mlxdist.checkpoint import async_save

RANKS = 2
ROWS, CONTEXT = 6, 128
KINDS = ("alone", "beside a save")


def main() -> None:
    args = parse_arguments()
    world = mlxdist.init()
    out = common.console() if world.is_root else None
    with shared_folder(world, args.folder) as folder:
        result = measure(Training(world, folder), args.rounds, out)
    if not world.is_root:
        return
    show(out, result)
    if args.json:
        common.write_json(args.json, __doc__.splitlines()[0], result, world.size)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rounds", type=common.positive, default=20, help="windows of each kind"
    )
    parser.add_argument("--folder", type=Path, default=Path(), help="on which disk")
    common.add_options(parser)
    args = parser.parse_args()
    if args.quick:
        args.rounds = 2
    return args


class Training:
    """Steps of this rank, and saves."""

    def __init__(self, world: Any, folder: Path):
        self.world, self._folder, self._saves = world, folder, 0
        world.seed(0)
        self.model = Transformer()
        self.optimizer = mlxdist.DistributedOptimizer(optim.AdamW(1e-4), shard=True)
        self.optimizer.init(self.model)
        self._gradients_of = nn.value_and_grad(self.model, loss_of)
        numbers = np.random.default_rng(world.rank)
        self._rows = mx.array(numbers.integers(0, 255, (ROWS, CONTEXT + 1)))

    def steps(self, count: int) -> float:
        """Seconds of so many steps, on the slowest rank."""
        self.world.barrier()
        began = time.perf_counter()
        for _ in range(count):
            loss, gradients = self._gradients_of(self.model, self._rows)
            self.optimizer.update(self.model, gradients)
            mx.eval(loss, self.model.parameters(), self.optimizer.state)
        return self._slowest(time.perf_counter() - began)

    def save(self, *, whole: bool) -> float:
        """Seconds until it is written, or until training may go on."""
        self._saves += 1
        self.world.barrier()
        began = time.perf_counter()
        mlxdist.save_checkpoint(
            self._folder,
            self._saves,
            self.model,
            self.optimizer,
            keep=1,
            background=not whole,
        )
        return self._slowest(time.perf_counter() - began)

    def written(self) -> None:
        """Waits for the save behind the steps."""
        failed = async_save.wait(self.world)
        assert failed is None, failed

    def _slowest(self, seconds: float) -> float:
        own = mx.array(seconds)
        return float(mx.distributed.all_max(own, group=self.world.group).item())


def measure(training: Training, rounds: int, out: Any) -> dict[str, Any]:
    training.steps(5)
    training.save(whole=True)
    save, step = training.save(whole=True), training.steps(5) / 5
    count = math.ceil(save / step) + 1
    samples: dict[str, list[float]] = {kind: [] for kind in (*KINDS, "the call")}
    with Progress(out, 2 * rounds) as progress:
        for number in range(rounds):
            for kind in common.order_of(KINDS, number):
                if kind != "alone":
                    samples["the call"].append(training.save(whole=False))
                samples[kind].append(training.steps(count))
                training.written()
                progress.advance(kind)
    leaves = tree_flatten(training.model.parameters())
    held = sum(leaf.nbytes for _, leaf in leaves)
    return {
        "steps in a window": count,
        "bytes": held + training.optimizer.describe().state_bytes_unsharded,
        "seconds of a save in front": save,
        **common.record(samples, [(KINDS[1], KINDS[0])]),
    }


def show(out: Any, result: dict[str, Any]) -> None:
    rows = [
        (name, f"{1e3 * one['median']:.1f}") for name, one in result["summary"].items()
    ]
    title = f"{result['steps in a window']} steps, {result['bytes'] / 1e6:.0f} MB saved"
    common.print_table(out, title, ["", "median ms"], rows)
    (ratio,) = result["ratios"].values()
    low, high = ratio["interval"]
    out.print(f"beside / alone: {ratio['ratio']:.3f} ({low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()
