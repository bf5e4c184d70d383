"""How much longer do steps take while a checkpoint is written in the background?

    mlxdist bench -n 2 background --json benchmarks/results/background.json

The quickstart's transformer with sharded AdamW on 2 ranks. A window is as many steps as
a save takes, plus one. Windows with a background save and windows without one are
interleaved. The call of `save_checkpoint`, which copies what this rank writes, is timed
separately: it takes the same time for any save.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import common
import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten
from ranks.transformer import Transformer, loss_of
from rich.console import Console

import mlxdist
from mlxdist.checkpoint import async_save

LEGEND = """\
median ms: of a window of steps alone, of one beside a background save, and of the call
of save_checkpoint; lower is better. In brackets: 95% interval over the rounds."""
RANKS = 2
ROWS, CONTEXT = 6, 128
ALONE, WITH_SAVE, CALL = "alone", "beside a save", "the call"


def main() -> None:
    args = parse_arguments()
    world = mlxdist.init()
    console = common.make_console() if world.is_root else None
    with common.shared_folder(world, args.folder) as folder:
        result = measure(Training(world, folder), args.rounds, console)
    if console is not None:
        show(console, result)
        common.write_json(args.json, __doc__, result, world.size)


def parse_arguments() -> argparse.Namespace:
    parser = common.make_parser(__doc__)
    common.add_rounds(parser, default=20)
    common.add_folder(parser)
    args = parser.parse_args()
    if args.quick:
        args.rounds = 2
    return args


class Training:
    """Training steps and saves of this rank; all times are those of the slowest."""

    def __init__(self, world: mlxdist.World, folder: Path):
        self.world, self._folder, self._saves = world, folder, 0
        world.seed(0)
        self.model = Transformer()
        self.optimizer = mlxdist.DistributedOptimizer(optim.AdamW(1e-4), shard=True)
        self.optimizer.init(self.model)
        self._value_and_grad = nn.value_and_grad(self.model, loss_of)
        random = np.random.default_rng(world.rank)
        self._rows = mx.array(random.integers(0, 255, (ROWS, CONTEXT + 1)))

    def steps(self, count: int) -> float:
        """Return the seconds of `count` steps."""
        self.world.barrier()
        began = time.perf_counter()
        for _ in range(count):
            loss, gradients = self._value_and_grad(self.model, self._rows)
            self.optimizer.update(self.model, gradients)
            mx.eval(loss, self.model.parameters(), self.optimizer.state)
        return self._slowest(time.perf_counter() - began)

    def save(self, *, background: bool) -> float:
        """Return the seconds until `save_checkpoint` returns."""
        self._saves += 1
        self.world.barrier()
        began = time.perf_counter()
        mlxdist.save_checkpoint(
            self._folder,
            self._saves,
            self.model,
            self.optimizer,
            keep=1,
            background=background,
        )
        return self._slowest(time.perf_counter() - began)

    def wait_for_save(self) -> None:
        """Return when the background save is complete."""
        error = async_save.wait(self.world)
        assert error is None, error

    def _slowest(self, seconds: float) -> float:
        return common.slowest(self.world, [seconds])[0]


def measure(training: Training, rounds: int, console: Console | None) -> common.Result:
    training.steps(5)
    training.save(background=False)
    save, step = training.save(background=False), training.steps(5) / 5
    count = math.ceil(save / step) + 1
    windows = (ALONE, WITH_SAVE)
    samples: dict[str, list[float]] = {name: [] for name in (*windows, CALL)}
    with common.show_progress(console, 2 * rounds) as progress:
        for number in range(rounds):
            for window in common.round_order(windows, number):
                if window == WITH_SAVE:
                    samples[CALL].append(training.save(background=True))
                samples[window].append(training.steps(count))
                training.wait_for_save()
                progress.advance(window)
    leaves = tree_flatten(training.model.parameters())
    parameter_bytes = sum(leaf.nbytes for _, leaf in leaves)
    state_bytes = training.optimizer.describe().state_bytes_unsharded
    return {
        "steps in a window": count,
        "bytes": parameter_bytes + state_bytes,
        "seconds of a save in front": save,
        **common.record(samples, [(WITH_SAVE, ALONE)]),
    }


def show(console: Console, result: common.Result) -> None:
    rows = [(n, f"{1e3 * s['median']:.1f}") for n, s in result["summary"].items()]
    title = f"{result['steps in a window']} steps, {result['bytes'] / 1e6:.0f} MB saved"
    common.print_table(console, title, ["", "median ms"], rows, LEGEND)
    common.print_verdicts(console, result["ratios"])


if __name__ == "__main__":
    main()
