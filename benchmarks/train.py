"""How many tokens a second does a transformer train on, against upstream?

    mlxdist bench train --json benchmarks/results/train.json

The quickstart's transformer, larger, on the same text, with AdamW in float32, on 2
ranks with one thread each: on this machine, and on two virtual hosts with a link of 1
Gbit/s (root, Linux). mlxdist ("ours") is sharded, with its defaults. Upstream is
`nn.average_gradients` over MPI as installed with MLX's own optimizer, whose update is
compiled or plain.

The embedding tables make communication and compute about equally long, as they are for
a model of a billion parameters on machines that are a thousand times faster, with a
link of ten times the rate. Both are in the result: compute, which is the loss and its
gradients alone on both ranks at once, and the lower bound of communication, 2(N-1)/N of
the bytes of gradients over the rate.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
from pathlib import Path
from typing import Any

import common
from common import plots
from common.cluster_jobs import VirtualCluster, bits_per_second
from common.jobs import Job, RunningJobs, mpi_job, running, upstream_environment
from rich.console import Console

SCRIPT = common.RANK_PROGRAMS / "train_rank.py"
LEGEND = """\
tokens/s: of all ranks, higher is better; ms a step: median of the slowest rank; than
...: tokens/s over those of that contender, above 1 is faster; last loss: equal for all,
so that they did the same work."""
COLORS = {
    "ours": plots.BLUE,
    "ours replicated": plots.LIGHT_BLUE,
    "upstream": plots.ORANGE,
    "upstream plain": plots.LIGHT_ORANGE,
}
CONTENDERS = tuple(COLORS)
MLXDIST, UPSTREAM = CONTENDERS[:2], CONTENDERS[2:]
PAIRS = [(ours, other) for ours in MLXDIST for other in UPSTREAM]
MACHINE = "one machine"


def main() -> None:
    args = parse_arguments()
    console = common.make_console()
    settings = ("n", "width", "layers", "table", "rows", "context", "steps")
    result: common.Result = {
        "settings": {name: getattr(args, name) for name in settings},
        "places": {},
    }
    for place in args.places:
        with contextlib.ExitStack() as stack:
            cluster = None
            if place != MACHINE:
                try:
                    cluster = stack.enter_context(VirtualCluster(args.n, rate=place))
                except RuntimeError as error:
                    console.print(f"{place}: skipped: {error}")
                    continue
            result["places"][place] = case = measure(console, args, place, cluster)
        show(console, place, case)
        common.write_json(args.json, __doc__, result)
    if result["places"]:
        common.draw_result(args.json, draw, result["places"])


def parse_arguments() -> argparse.Namespace:
    parser = common.make_parser(__doc__)

    def add(name: str, default: Any, text: str, **options: Any) -> None:
        text += " (default: %(default)s)"
        options.setdefault("type", common.positive)
        parser.add_argument(name, default=default, help=text, **options)

    add("-n", 2, "ranks, and virtual hosts")
    add("--width", 256, "of the model, a multiple of 64")
    add("--layers", 2, "of the model")
    add("--table", 16384, "rows of its larger embedding tables")
    add("--rows", 1, "of text that a rank takes a step")
    add("--context", 128, "bytes in a row")
    add("--steps", 3, "in a round")
    common.add_rounds(parser, "--turns", default=10)
    text = f"{MACHINE!r}, or the rate of the links between virtual hosts"
    add("--places", [MACHINE, "1gbit"], text, type=str, nargs="+")
    contenders: dict[str, Any] = {"type": str, "nargs": "+", "choices": CONTENDERS}
    add("--contenders", list(CONTENDERS), "which", **contenders)
    args = parser.parse_args()
    if args.quick:
        args.width, args.layers, args.table = 64, 1, 2048
        args.rounds, args.steps = min(args.rounds, 3), min(args.steps, 2)
    return args


def measure(
    console: Console,
    args: argparse.Namespace,
    place: str,
    cluster: VirtualCluster | None,
) -> common.Result:
    """Return a case: interleaved samples of all contenders, in seconds a step."""
    contenders = [contender_job(name, args, cluster) for name in args.contenders]
    load = common.other_load()
    total = args.rounds * (len(contenders) + 1)
    training = TrainingSamples(args.contenders, args.steps)
    with (
        running(contenders) as jobs,
        common.show_progress(console, total, place) as progress,
    ):
        for number in range(args.rounds):
            for name in common.round_order(args.contenders, number):
                training.train(jobs, name)
                progress.advance(name)
            training.compute(jobs)
            progress.advance("compute")
    check_equal_losses(training.losses)
    sent = 2 * (args.n - 1) / args.n * training.nbytes
    result = common.record(training.seconds, PAIRS)
    tokens = args.n * args.rows * args.context
    return {
        "load_before": load,
        **result,
        "tokens_per_second": {
            name: tokens / summary["median"]
            for name, summary in result["summary"].items()
        },
        "gain_in_tokens_per_second": {
            pair: 1 / ratio["ratio"] for pair, ratio in result["ratios"].items()
        },
        "gradient_bytes": training.nbytes,
        "compute_seconds": statistics.median(training.compute_seconds),
        "wire_seconds_at_least": sent * 8 / bits_per_second(place) if cluster else None,
        "compute_samples": training.compute_seconds,
        "losses": training.losses,
    }


def contender_job(
    name: str, args: argparse.Namespace, cluster: VirtualCluster | None
) -> Job:
    settings = (args.width, args.layers, args.table, args.rows, args.context)
    arguments = (name, *map(str, settings))
    environment = upstream_environment() if name in UPSTREAM else None
    return mpi_job(
        name, args.n, SCRIPT, *arguments, cluster=cluster, environment=environment
    )


class TrainingSamples:
    """Samples of contenders in seconds a step, with their losses."""

    def __init__(self, contenders: list[str], steps: int):
        self.seconds: dict[str, list[float]] = {name: [] for name in contenders}
        self.losses: dict[str, list[float]] = {name: [] for name in contenders}
        self.compute_seconds: list[float] = []
        self.nbytes = 0  # of the gradients
        self._steps, self._first = steps, contenders[0]

    def train(self, jobs: RunningJobs, name: str) -> None:
        replies = jobs.request(name, steps=self._steps, part="train")
        self.seconds[name].append(max(reply["seconds"] for reply in replies))
        self.losses[name].append(replies[0]["loss"])
        self.nbytes = replies[0]["bytes"]

    def compute(self, jobs: RunningJobs) -> None:
        replies = jobs.request(self._first, steps=self._steps, part="compute")
        self.compute_seconds.append(max(reply["seconds"] for reply in replies))


def check_equal_losses(losses: dict[str, list[float]]) -> None:
    """Exit with an error where losses differ by more than rounding of the sums."""
    last = {name: each[-1] for name, each in losses.items()}
    if max(last.values()) > 1.02 * min(last.values()):
        sys.exit(f"train: error: contenders reached different losses: {last}")


def show(console: Console, place: str, case: common.Result) -> None:
    others = [name for name in UPSTREAM if name in case["summary"]]
    rows = []
    for name, summary in case["summary"].items():
        pairs = (f"{name} / {other}" for other in others)
        gains = [case["gain_in_tokens_per_second"].get(pair) for pair in pairs]
        rows.append(
            [
                name,
                f"{case['tokens_per_second'][name]:,.0f}",
                f"{summary['median'] * 1e3:.0f}",
                *(f"{gain:.2f} x" if gain else "" for gain in gains),
                f"{case['losses'][name][-1]:.3f}",
            ]
        )
    columns = ["contender", "tokens/s", "ms a step", *(f"than {o}" for o in others)]
    common.print_table(console, place, [*columns, "last loss"], rows, LEGEND)
    wire = case["wire_seconds_at_least"]
    text = "" if wire is None else f", communication at least {wire * 1e3:.0f} ms"
    console.print(
        f"a step's compute {case['compute_seconds'] * 1e3:.0f} ms{text}, "
        f"gradients {case['gradient_bytes'] / 1e6:.1f} MB"
    )
    common.print_verdicts(console, case["ratios"])
    console.print()


def draw(path: Path, places: common.Result) -> None:
    """Draw the tokens per second of each contender, place by place, as bars."""
    title = "Training a transformer on 2 ranks: tokens a second"
    with plots.figure(path, title, size=(8, 4.5), grid="y") as axes:
        width = 0.8 / len(COLORS)
        for offset, (name, color) in enumerate(COLORS.items()):
            rates = [case["tokens_per_second"].get(name) for case in places.values()]
            heights = {x: rate for x, rate in enumerate(rates) if rate}
            left = [x + (offset - len(COLORS) / 2) * width for x in heights]
            bars = axes.bar(
                left, heights.values(), width, align="edge", color=color, label=name
            )
            axes.bar_label(bars, fmt="{:,.0f}", fontsize=9, padding=2)
        names = [p if p == MACHINE else f"virtual hosts, {p} link" for p in places]
        axes.set_xticks(range(len(places)), names)
        axes.set_ylabel("tokens/s")
        axes.legend(frameon=False, ncols=2, loc="upper right")
        axes.margins(y=0.25)


if __name__ == "__main__":
    main()
