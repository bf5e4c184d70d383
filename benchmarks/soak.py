"""Does the memory of a rank stay flat over 20,000 steps?

    mlxdist bench soak --json benchmarks/results/soak.json

A small MLP in bfloat16 on 2 ranks with all that keeps something between steps: sharded
AdamW with float32 master weights, EMA weights, two micro-batches a step, clipping, a
sampler over hundreds of epochs, metrics, and a checkpoint every 500 steps, written in
the background, of which three are kept. Each rank samples every 50 steps its resident
memory, open file descriptors and threads, and the entries of the checkpoints' folder,
one of which is `latest`. A slope is fitted by least squares to the samples after the
warm-up. Of descriptors, threads and checkpoints the least of each window between two
saves counts, because a save under way has its own. Linux only, because it reads /proc.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import common
import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from common import plots
from rich.console import Console

import mlxdist
from mlxdist.checkpoint import async_save

LEGEND = """\
Growth a step by least squares, after the warm-up: resident memory in bytes, and counts;
0 is flat, lower is better. Then the least and the most of each count."""
RANKS = 2
SAMPLE_EVERY, SAVE_EVERY, KEEP = 50, 500, 3  # steps, steps, checkpoints
EXAMPLES, INPUTS, CLASSES, BATCH = 1003, 33, 7, 8
MICRO_BATCHES = 2  # a step
COUNTS = ("descriptors", "threads", "checkpoints")
BOUND = 1000  # bytes of resident memory a step

Samples = dict[str, list[int]]  # by what was counted, in the order of the steps


def main() -> None:
    args = parse_arguments()
    world = mlxdist.init()
    console = common.make_console() if world.is_root else None
    with common.shared_folder(world, args.folder) as folder:
        training = Training(world, folder)
        samples = measure(training, args.steps, console)
        every_rank = gather(world, samples)
    if console is not None:
        result = summarize(every_rank, args.warmup) | {
            "epochs": training.sampler.epoch,
            "steps": args.steps,
        }
        show(console, result)
        common.write_json(args.json, __doc__, result, world.size)
        common.draw_result(args.json, draw, every_rank, args.warmup)


def parse_arguments() -> argparse.Namespace:
    parser = common.make_parser(__doc__)
    parser.add_argument("--steps", type=common.positive, default=20_000)
    parser.add_argument(
        "--warmup", type=common.positive, help="steps before those fitted (a tenth)"
    )
    common.add_folder(parser)
    args = parser.parse_args()
    if args.quick:
        args.steps = min(args.steps, 2000)
    args.warmup = args.warmup or args.steps // 10
    if args.steps - args.warmup < 2 * SAVE_EVERY:
        parser.error(f"--steps: wanted at least {2 * SAVE_EVERY} after the warm-up")
    if not Path("/proc/self/smaps_rollup").exists():
        sys.exit("soak: error: it reads /proc, which only Linux has")
    return args


class Training:
    """A training run of this rank that saves as it goes."""

    def __init__(self, world: mlxdist.World, folder: Path):
        self.world, self.folder = world, folder
        world.seed(0)
        self.model = nn.Sequential(
            nn.Linear(INPUTS, 129), nn.ReLU(), nn.Linear(129, CLASSES)
        )
        self.model.set_dtype(mx.bfloat16)
        self.optimizer = mlxdist.DistributedOptimizer(
            optim.AdamW(1e-4),
            shard=True,
            master_dtype=mx.float32,
            accumulate=MICRO_BATCHES,
            max_norm=1.0,
            ema_decay=0.999,
        )
        self.optimizer.init(self.model)
        self.sampler = mlxdist.ShardedSampler(EXAMPLES, world=world, batch_size=BATCH)
        random = np.random.default_rng(0)
        self._x = mx.array(random.normal(size=(EXAMPLES, INPUTS)), mx.bfloat16)
        self._y = mx.array(random.integers(0, CLASSES, EXAMPLES))
        self._loss_and_gradients = nn.value_and_grad(self.model, self._loss)
        self._batches = self._endless()

    def _endless(self) -> Iterator[mx.array]:
        while True:
            yield from self.sampler

    def _loss(self, x: mx.array, y: mx.array) -> mx.array:
        return nn.losses.cross_entropy(self.model(x), y, reduction="mean")

    def step(self) -> None:
        for _ in range(MICRO_BATCHES):
            batch = next(self._batches)
            loss, gradients = self._loss_and_gradients(self._x[batch], self._y[batch])
            self.optimizer.update(self.model, gradients, weight=len(batch))
            mx.eval(loss, self.model.parameters())

    def save(self, step: int) -> None:
        with self.optimizer.averaged(self.model):
            loss = self._loss(self._x, self._y).item()
        self.world.mean({"loss": loss, "norm": self.optimizer.grad_norm.item()})
        mlxdist.save_checkpoint(
            self.folder,
            step,
            self.model,
            self.optimizer,
            sampler=self.sampler,
            keep=KEEP,
            background=True,
        )


def measure(training: Training, steps: int, console: Console | None) -> Samples:
    """Train, and return this rank's samples, the first of step SAMPLE_EVERY."""
    samples: Samples = {}
    with common.show_progress(console, steps // SAMPLE_EVERY) as progress:
        for step in range(1, steps + 1):
            training.step()
            if step % SAMPLE_EVERY == 0:
                for name, value in sample(training.folder).items():
                    samples.setdefault(name, []).append(value)
                progress.advance(f"step {step}")
            if step % SAVE_EVERY == 0:
                training.save(step)
    error = async_save.wait(training.world)
    assert error is None, error
    return samples


def sample(folder: Path) -> dict[str, int]:
    """Return what this process holds, and the entries and bytes of the folder."""
    rollup = Path("/proc/self/smaps_rollup").read_text()
    status = Path("/proc/self/status").read_text()
    files = [path for path in folder.rglob("*") if path.is_file()]
    with contextlib.suppress(FileNotFoundError):  # a save removes an older one
        size = sum(path.stat().st_size for path in files)
        return {
            "resident": 1024 * _field("Rss", rollup),
            "descriptors": len(os.listdir("/proc/self/fd")),
            "threads": _field("Threads", status),
            "mlx_active": mx.get_active_memory(),
            "checkpoints": len(os.listdir(folder)),
            "bytes": size,
        }
    return sample(folder)


def _field(name: str, text: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+)", text, re.MULTILINE)
    assert found, f"/proc has no {name}"
    return int(found[1])


def gather(world: mlxdist.World, samples: Samples) -> list[Samples]:
    """Return the samples of all ranks, by rank."""
    messages = world.control.all_gather_bytes(json.dumps(samples).encode())
    return [json.loads(message) for message in messages]


def slope(values: Sequence[float], every: int) -> float:
    """Return the growth a step, by least squares, of values `every` steps apart.

    Rounded, so that equal values have a slope of 0.
    """
    steps = every * np.arange(len(values))
    return round(float(np.polyfit(steps, values, 1)[0]), 6)


def summarize(every_rank: Sequence[Samples], warmup: int) -> common.Result:
    """Return the slopes of each rank after the warm-up, and the raw samples."""
    first, window = warmup // SAMPLE_EVERY, SAVE_EVERY // SAMPLE_EVERY
    ranks: list[common.Result] = []
    for samples in every_rank:
        rank: common.Result = {
            "resident slope": slope(samples["resident"][first:], SAMPLE_EVERY),
            "mlx_active slope": slope(samples["mlx_active"][first:], SAMPLE_EVERY),
        }
        for name in COUNTS:
            settled = least_of_windows(samples[name][first:], window)
            rank[f"{name} slope"] = slope(settled, SAVE_EVERY)
            rank[name] = [min(settled), max(settled)]
        ranks.append(rank)
    names = {"sample every": SAMPLE_EVERY, "save every": SAVE_EVERY, "keep": KEEP}
    return {**names, "warmup": warmup, "ranks": ranks, "samples": list(every_rank)}


def least_of_windows(values: Sequence[int], window: int) -> list[int]:
    """Return the least of each whole window of samples."""
    starts = range(0, len(values) - window + 1, window)
    return [min(values[start : start + window]) for start in starts]


def show(console: Console, result: common.Result) -> None:
    rows = [
        (
            f"rank {rank}",
            *(f"{summary[f'{name} slope']:.3f}" for name in ("resident", *COUNTS)),
            *(f"{least} to {most}" for least, most in map(summary.get, COUNTS)),
        )
        for rank, summary in enumerate(result["ranks"])
    ]
    title = f"{result['steps']} steps, {result['epochs']} epochs: growth a step, range"
    columns = ["", "resident B", *COUNTS, *COUNTS]
    common.print_table(console, title, columns, rows, LEGEND)
    growth = max(summary["resident slope"] for summary in result["ranks"])
    text = common.bound_text("memory grows by at most", growth, BOUND, "bytes a step")
    common.print_verdict(console, text)


def draw(path: Path, every_rank: Sequence[Samples], warmup: int) -> None:
    """Draw the resident memory, descriptors and threads of all ranks over the steps."""
    title = "A long run on 2 ranks: memory, descriptors and threads of each"
    styles = ((plots.BLUE, "-", 3.0), (plots.ORANGE, "--", 1.5))
    with plots.figure(path, title, size=(10, 4.5), columns=2) as (left, right):
        for rank, samples in enumerate(every_rank):
            color, style, width = styles[rank % len(styles)]
            steps = SAMPLE_EVERY * np.arange(1, len(samples["resident"]) + 1)
            options = {"color": color, "linestyle": style, "linewidth": width}
            megabytes = np.array(samples["resident"]) / 1e6
            left.plot(steps, megabytes, label=f"rank {rank}", **options)
            for name in COUNTS[:2]:
                right.plot(
                    steps, samples[name], label=f"{name}, rank {rank}", **options
                )
        fitted = steps[warmup // SAMPLE_EVERY :]
        first = max(
            samples["resident"][warmup // SAMPLE_EVERY] for samples in every_rank
        )
        bound = (first + BOUND * (fitted - fitted[0])) / 1e6
        label = f"{BOUND / 1000:.0f} KB a step"
        left.plot(fitted, bound, ":", color=plots.GRAY, label=label)
        left.set(xlabel="steps", ylabel="resident memory, MB")
        left.legend(frameon=False, ncols=3, loc="upper left")
        right.set(xlabel="steps", ylabel="open descriptors (above), threads (below)")
        for axes in (left, right):
            axes.set_ylim(0, 1.2 * axes.get_ylim()[1])


if __name__ == "__main__":
    main()
