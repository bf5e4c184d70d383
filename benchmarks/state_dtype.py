"""Does training with state in 8 bits, or means in 16, reach the loss without?

    mlxdist bench state_dtype --folder runs/state_dtype --json state_dtype.json

Two tasks with AdamW, in three seeds each: "main", the job of launch/train_lm.py (600
steps), and "small", a perceptron that predicts bytes (20,000 steps at a constant rate).
The variants of a seed have the same initial weights and batches, so that their losses
can be compared step by step:

- float32: the reference.
- float32, perturbed: the same with initial weights changed in their last bit. It shows
  how far chance alone moves the loss.
- int8: embeddings keep float32 state, as is the default.
- int8, embeddings too: `float32_state=()`.
- per-tensor affine: the negative control, which has to fail. Its second moment itself
  has 8 bits, affine, one range for each tensor, instead of roots in blocks.

- bfloat16: parameters of 16 bits with float32 masters, on two ranks that share out the
  batch. A reference as well.
- bfloat16, means too: `mean_dtype=mx.bfloat16` rounds the means of these gradients.

The difference over a tenth of the run is mean loss / mean loss of the reference - 1. A
variant passes if the difference over the last tenth is at most 0.3%, and at most 0.1%
from that over the tenth before: it doesn't drift apart. A run takes a core for
each rank. Finished runs are kept in --folder, and a later call adds those that are
missing.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import common
from common import jobs, loss_plot
from ranks.state_dtype_rank import VARIANTS
from rich.console import Console

from mlxdist.launcher.environment import without_mpi

LEGEND = """\
Mean loss over that of the reference, less 1: 0 is equal, above 0 is worse. last tenth:
of the run; drift: how much that changed from the tenth before; held-out: of the text
that was not trained on. It passes up to 0.3% with a drift of up to 0.1%."""

SCRIPT = common.RANK_PROGRAMS / "state_dtype_rank.py"
STEPS = {"main": 600, "small": 20_000}
POINTS = 200  # of a curve in the result, each the mean of as many steps
MOST_DIFFERENCE = 0.003  # over the last tenth
MOST_DRIFT = 0.001  # from the tenth before to the last one


class Run(NamedTuple):
    """One training run; the runs of a task and a seed have the same batches."""

    task: str
    variant: str
    seed: int
    steps: int

    def file(self, folder: Path) -> Path:
        """Return the file of the run's losses once it has finished."""
        return folder / f"{self.task}, {self.variant}, {self.seed}, {self.steps}.json"


class Difference(NamedTuple):
    """How far the losses of a run are from those of its reference.

    Attributes:
        end: mean loss / mean loss of the reference - 1, over the last tenth.
        drift: `end` minus the same over the tenth before.
    """

    end: float
    drift: float

    @property
    def passes(self) -> bool:
        # nan compares false.
        return abs(self.end) <= MOST_DIFFERENCE and abs(self.drift) <= MOST_DRIFT


def difference(losses: Sequence[float], reference: Sequence[float]) -> Difference:
    """Compare the losses of two runs on the same batches, step by step."""
    tenth = len(reference) // 10

    def over(start: int, stop: int | None) -> float:
        mean = statistics.fmean(losses[start:stop])
        return mean / statistics.fmean(reference[start:stop]) - 1

    end = over(-tenth, None)
    return Difference(end, end - over(-2 * tenth, -tenth))


def main() -> None:
    args = parse_arguments()
    console = common.make_console()
    runs = [
        Run(task, variant, seed, args.steps or STEPS[task])
        for task in args.tasks
        for seed in range(args.seeds)
        for variant in args.variants
    ]
    with contextlib.ExitStack() as stack:
        folder = args.folder
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        train_all(console, runs, folder, args.parallel)
        result = summarize(runs, folder)
    show(console, result)
    common.write_json(args.json, __doc__, result)
    common.draw_result(args.json, loss_plot.draw, result, MOST_DIFFERENCE)


def parse_arguments() -> argparse.Namespace:
    parser = common.make_parser(__doc__)
    parser.add_argument("--tasks", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument(
        "--variants",
        nargs="+",
        choices=VARIANTS,
        default=list(VARIANTS),
        metavar="NAME",
    )
    parser.add_argument("--seeds", type=common.positive, metavar="N", help="number")
    parser.add_argument("--steps", type=common.positive, metavar="N", help="of a run")
    parser.add_argument("--folder", type=Path, help="keeps finished runs")
    parser.add_argument(
        "--parallel", type=common.positive, default=2, metavar="N", help="runs at once"
    )
    args = parser.parse_args()
    args.variants = _with_references(args.variants)
    args.seeds = args.seeds or (1 if args.quick else 3)
    args.steps = args.steps or (200 if args.quick else None)
    return args


def _with_references(variants: Sequence[str]) -> list[str]:
    """Return variants, each after its reference."""
    pairs = [(VARIANTS[name].reference, name) for name in variants]
    return list(dict.fromkeys(itertools.chain.from_iterable(pairs)))


def train_all(
    console: Console, runs: Sequence[Run], folder: Path, parallel: int
) -> None:
    """Train what has not finished yet, some runs at once."""
    missing = [run for run in runs if not run.file(folder).exists()]
    with (
        common.show_progress(console, len(missing)) as progress,
        ThreadPoolExecutor(parallel) as pool,
    ):
        trained = pool.map(lambda run: train(run, folder), missing)
        for run, _ in zip(missing, trained, strict=True):
            progress.advance(f"{run.task}, {run.variant}, seed {run.seed}")


def train(run: Run, folder: Path) -> None:
    """Train, in a process of one thread for each rank.

    Raises:
        RuntimeError: it failed, with its output.
    """
    path = os.pathsep.join(map(os.fspath, (common.ROOT, common.BENCHMARKS)))
    environment = {
        **without_mpi(os.environ),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": path,
    }
    ranks = VARIANTS[run.variant].ranks
    launcher = jobs.mpirun(ranks) if ranks > 1 else []
    command = [*launcher, sys.executable, SCRIPT, *map(str, run), run.file(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{run}: {done.stdout}{done.stderr}")


def summarize(runs: Sequence[Run], folder: Path) -> common.Result:
    """Return each task's curves, and each variant's difference from its reference."""
    result: common.Result = {"bounds": {"end": MOST_DIFFERENCE, "drift": MOST_DRIFT}}
    for run in runs:
        losses, held_out = _read(run, folder)
        reference, held_out_reference = _read(_reference(run), folder)
        compared = difference(losses, reference)
        task = result.setdefault("tasks", {}).setdefault(run.task, {"steps": run.steps})
        seeds = task.setdefault("variants", {}).setdefault(run.variant, [])
        seeds.append(
            {
                "seed": run.seed,
                **compared._asdict(),
                "passes": compared.passes,
                "held-out difference": held_out[-1] / held_out_reference[-1] - 1,
                "held-out": held_out,
                "curve": _means(losses),
            }
        )
    return result


def _reference(run: Run) -> Run:
    return run._replace(variant=VARIANTS[run.variant].reference)


def _read(run: Run, folder: Path) -> tuple[list[float], list[float]]:
    record = json.loads(run.file(folder).read_text())
    return record["losses"], record["held_out"]


def _means(losses: Sequence[float]) -> list[float]:
    """Return the means of POINTS consecutive parts."""
    size = max(1, len(losses) // POINTS)
    starts = range(0, len(losses) - size + 1, size)
    return [round(statistics.fmean(losses[i : i + size]), 6) for i in starts]


def show(console: Console, result: common.Result) -> None:
    for name, task in result["tasks"].items():
        rows = []
        for variant, seeds in task["variants"].items():
            for each in seeds:
                shares = each["end"], each["drift"], each["held-out difference"]
                percent = [f"{100 * share:+.3f}%" for share in shares]
                verdict = "passes" if each["passes"] else "fails"
                rows.append([f"{variant}, seed {each['seed']}", *percent, verdict])
        columns = ["loss / reference's - 1", "last tenth", "drift", "held-out", ""]
        common.print_table(
            console, f"{name}, {task['steps']} steps", columns, rows, LEGEND
        )
        console.print()


if __name__ == "__main__":
    main()
