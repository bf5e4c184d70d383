"""How much of its communication does a step hide behind the backward pass?

    mlxdist bench overlap --json benchmarks/results/overlap.json

A transformer of 7.9 million parameters with AdamW on virtual hosts
(tests/support/virtual_cluster), with one rank each and as many rows in a batch as make
compute and communication equally long. Timed in interleaved rounds, for each contender:

    forward    the loss
    compute    loss and gradients
    wire       `update` with evaluated gradients: communication and optimizer
    step       a training step as users write it: `update` gets unevaluated gradients,
               and the loss is read. Ten in a row, until the last parameters are there
    in a row   gradients are evaluated before `update`: nothing overlaps

The result is step / max(compute, wire). If steps do not overlap each other, it is at
least (forward + max(backward, wire)) / max(compute, wire), "possible": communication
cannot start before the first gradient is ready. Sharded parameters arrive behind the
next forward pass, so that a step can take less than that. The hosts share this
machine's cores, so sending takes processor time from computing, and more of it on a
faster link.

The contenders are mlxdist, sharded and replicated, the latter over "native" as well;
`nn.average_gradients` and MLX's AdamW over MPI as installed ("mpi"), and over MLX's
ring ("ring"). Needs root on Linux, and iproute2.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import common
from common import plots
from common.cluster_jobs import VirtualCluster, cluster_job
from common.jobs import RunningJobs, running
from rich.console import Console

SCRIPT = common.RANK_PROGRAMS / "overlap_rank.py"
LEGEND = """\
ms, medians of the slowest rank; lower is better. step /: a whole step in units of the
longer of compute and wire. 1 hides all of the shorter one behind it; possible / is what
steps that don't overlap one another can reach, in a row / nothing overlapped."""
JOBS = {  # of each contender
    "sharded": "mlxdist",
    "replicated": "mlxdist",
    "replicated native": "mlxdist",
    "mpi": "mpi",
    "ring": "ring",
}
PARTS = ("forward", "compute", "wire", "step", "in_a_row")
SAMPLES = 2  # of each part in a round
STEPS = 10  # in a row: parameters may arrive behind the next forward pass
MAX_ROWS = 512


def main() -> None:
    args = parse_arguments()
    console = common.make_console()
    result: common.Result = {"cases": {}}
    for rate in args.rates:
        name = f"{args.hosts} hosts, {rate}"
        result["cases"][name] = measure(console, name, rate, args)
        show(console, name, result["cases"][name])
        common.write_json(args.json, __doc__, result)
    common.draw_result(args.json, draw, result["cases"])


def parse_arguments() -> argparse.Namespace:
    parser = common.make_parser(__doc__)
    common.add_hosts(parser, 2)
    common.add_rates(parser, ["1gbit", "200mbit"])
    parser.add_argument(
        "--only",
        nargs="+",
        choices=list(JOBS),
        default=list(JOBS),
        metavar="NAME",
        help=f"contenders, of {', '.join(JOBS)}",
    )
    common.add_rounds(parser, "--turns")
    args = parser.parse_args()
    args.rounds = args.rounds or (1 if args.quick else 5)
    return args


def measure(
    console: Console, name: str, rate: str, args: argparse.Namespace
) -> common.Result:
    """Return a case: the samples of all contenders on one cluster."""
    contenders = args.only
    samples: dict[str, list[float]] = {
        f"{c} {p}": [] for c in contenders for p in PARTS
    }
    with VirtualCluster(args.hosts, rate=rate) as cluster:
        kinds = dict.fromkeys(JOBS[contender] for contender in contenders)
        cluster_jobs = [cluster_job(cluster, kind, SCRIPT) for kind in kinds]
        total = args.rounds * len(samples)
        with (
            running(cluster_jobs) as jobs,
            common.show_progress(console, total, name) as progress,
        ):
            rows = balanced_rows(jobs, contenders[0])
            for number in range(args.rounds):
                for contender in common.round_order(contenders, number):
                    for part in common.round_order(PARTS, number):
                        seconds = take_samples(jobs, contender, part, rows)
                        samples[f"{contender} {part}"] += seconds
                        progress.advance(f"{contender} {part}")
    case = common.record(samples, pairs(contenders))
    case["rows"] = rows
    case["step_by_the_larger_part"] = {
        contender: relative_times(contender, case["summary"])
        for contender in contenders
    }
    return case


def take_samples(
    jobs: RunningJobs, contender: str, part: str, rows: int
) -> list[float]:
    """Return samples of the slowest rank, in seconds."""
    parts = [(contender, part)]
    repeats = STEPS if part == "step" else 1
    replies = jobs.request(
        JOBS[contender], parts=parts, rows=rows, samples=SAMPLES, repeats=repeats
    )
    seconds = (reply["seconds"][0] for reply in replies)
    return list(map(max, zip(*seconds, strict=True)))


def balanced_rows(jobs: RunningJobs, contender: str) -> int:
    """Return the number of rows for which compute takes as long as communication."""
    wire = statistics.median(
        [s for _ in range(2) for s in take_samples(jobs, contender, "wire", 1)]
    )
    rows = 4
    for _ in range(4):  # the time of a row depends on their number
        compute = statistics.median(take_samples(jobs, contender, "compute", rows))
        rows = min(MAX_ROWS, max(1, round(rows * wire / compute)))
    return rows


def pairs(contenders: Sequence[str]) -> list[tuple[str, str]]:
    parts = [(f"{c} step", f"{c} {part}") for c in contenders for part in PARTS[1:3]]
    upstream = [
        (f"{contender} step", f"{other} step")
        for contender in ("sharded", "replicated", "replicated native")
        for other in ("mpi", "ring")
    ]
    return [*parts, *upstream]


def relative_times(contender: str, summary: dict[str, Any]) -> dict[str, float]:
    """Return a contender's times in units of max(compute, wire)."""
    times = {part: summary[f"{contender} {part}"]["median"] for part in PARTS}
    backward = times["compute"] - times["forward"]
    larger = max(times["compute"], times["wire"])
    possible = times["forward"] + max(backward, times["wire"])
    return {
        "step": times["step"] / larger,
        "in_a_row": times["in_a_row"] / larger,
        "possible": possible / larger,
    }


def show(console: Console, name: str, case: common.Result) -> None:
    rows = []
    for contender, relative in case["step_by_the_larger_part"].items():
        times = [f"{median_ms(case, contender, part):.0f}" for part in PARTS]
        figures = (f"{relative[key]:.3f}" for key in ("step", "in_a_row", "possible"))
        rows.append([contender, *times, *figures])
    title = f"{name}, {case['rows']} rows: ms, and in units of max(compute, wire)"
    parts = [part.replace("_", " ") for part in PARTS]
    columns = ["contender", *parts, "step /", "in a row /", "possible /"]
    common.print_table(console, title, columns, rows, LEGEND)
    for pair, ratio in case["ratios"].items():
        if pair.count("step") == 2:
            common.print_verdict(console, common.verdict_of(pair, ratio))
    console.print()


def median_ms(case: common.Result, contender: str, part: str) -> float:
    return 1e3 * float(case["summary"][f"{contender} {part}"]["median"])


def draw(path: Path, cases: common.Result) -> None:
    """Draw each contender's compute and communication, stacked, next to its step."""
    title = "A step and its parts"
    with plots.figure(path, title, columns=len(cases), size=(10, 4.5)) as columns:
        for axes, (name, case) in zip(
            columns if len(cases) > 1 else [columns], cases.items(), strict=True
        ):
            _draw_case(axes, case)
            axes.set_title(f"{name}, {case['rows']} rows", fontsize=10)


def _draw_case(axes: Any, case: common.Result) -> None:
    relative = case["step_by_the_larger_part"]
    times = {part: [median_ms(case, c, part) for c in relative] for part in PARTS}
    x = range(len(relative))
    left = [each - 0.4 for each in x]
    width: dict[str, Any] = {"width": 0.38, "align": "edge"}
    compute, wire = times["compute"], times["wire"]
    axes.bar(left, compute, color=plots.GRAY, label="compute", **width)
    axes.bar(
        left, wire, bottom=compute, color=plots.LIGHT_ORANGE, label="wire", **width
    )
    bars = axes.bar(x, times["step"], color=plots.BLUE, label="step", **width)
    labels = [f"{each['step']:.2f}" for each in relative.values()]
    axes.bar_label(bars, labels, fontsize=8, padding=2)
    axes.set_xticks(x, list(relative))
    axes.set_ylabel("ms; above a step, its ratio to the larger part")
    axes.legend(frameon=False, ncols=3, loc="upper left")
    axes.margins(y=0.2)


if __name__ == "__main__":
    main()
