"""How much of the wire's time does a step hide behind its backward pass?

    mlxdist bench overlap --json benchmarks/results/overlap.json

A transformer of 7.9 million parameters with AdamW on virtual hosts
(launch/virtual_cluster), one rank each, with so many rows in a batch that computing
takes about as long as the wire. Timed in turns, in one launch for each contender:

    forward    the loss
    compute    loss and gradients
    wire       `update` with gradients that are there: exchange and optimizer
    step       all of it, as one writes it: gradients go into `update` unevaluated
    in a row   gradients are evaluated before `update`: nothing is hidden

The figure is step / max(compute, wire). Where nothing of a step runs beside the next,
it is at least (forward + max(backward, wire)) / max(compute, wire), "possible": nothing
can travel before the first gradient is there. Hosts share this machine's cores: what
sending costs the processor stands in the way of computing, more so on a faster wire.

Contenders: ours, sharded and replicated, that over "native" too; `nn.average_gradients`
and MLX's AdamW over MPI as installed, and over its ring. Needs root on Linux, iproute2.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import common
from common import plots
from common.cluster_jobs import (
    VirtualCluster,
    mpi_on_hosts,
    plain_mlx_on_hosts,
    ring_on_hosts,
)
from common.jobs import RunningJobs, running
from common.progress import Progress

SCRIPT = common.BENCHMARKS / "ranks" / "overlap_rank.py"
PLAYERS = {
    "sharded": "ours",
    "replicated": "ours",
    "replicated native": "ours",
    "mpi": "mpi",
    "ring": "ring",
}
STARTS = {"ours": mpi_on_hosts, "mpi": plain_mlx_on_hosts, "ring": ring_on_hosts}
PARTS = ("forward", "compute", "wire", "step", "in_a_row")
ROUNDS = 2  # samples in one turn
MOST_ROWS = 512


def main() -> None:
    args = parse_arguments()
    out = common.console()
    result: dict[str, Any] = {"cases": {}}
    for rate in args.rates:
        name = f"{args.hosts} hosts, {rate}"
        result["cases"][name] = measure(out, name, rate, args)
        show(out, name, result["cases"][name])
        if args.json:
            common.write_json(args.json, __doc__.splitlines()[0], result)
    if args.json:
        with contextlib.suppress(ImportError):
            draw(args.json, result["cases"])


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hosts", type=common.several, default=2, metavar="N")
    parser.add_argument(
        "--rates",
        nargs="+",
        type=common.rate,
        default=["1gbit", "200mbit"],
        metavar="RATE",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=list(PLAYERS),
        default=list(PLAYERS),
        metavar="NAME",
        help=f"contenders, of {', '.join(PLAYERS)}",
    )
    parser.add_argument("--turns", type=common.positive, help="of each contender")
    common.add_options(parser)
    args = parser.parse_args()
    args.turns = args.turns or (1 if args.quick else 5)
    return args


def measure(out: Any, name: str, rate: str, args: argparse.Namespace) -> dict[str, Any]:
    """One cluster, on which all contenders take turns."""
    wanted = [(who, what) for who in args.only for what in PARTS]
    samples: dict[str, list[float]] = {f"{who} {what}": [] for who, what in wanted}
    with VirtualCluster(args.hosts, rate=rate) as cluster:
        players = [
            STARTS[player](cluster, player, SCRIPT, player)
            for player in dict.fromkeys(PLAYERS[who] for who in args.only)
        ]
        total = args.turns * len(wanted)
        with running(players) as jobs, Progress(out, total, name) as progress:
            rows = balanced_rows(jobs, args.only[0])
            for number in range(args.turns):
                for who in common.order_of(args.only, number):
                    for what in common.order_of(PARTS, number):
                        samples[f"{who} {what}"] += ask(jobs, who, what, rows)
                        progress.advance(f"{who} {what}")
    case = common.record(samples, pairs(args.only))
    case["rows"] = rows
    case["step_by_the_larger_part"] = {
        who: shares(who, case["summary"]) for who in args.only
    }
    return case


def ask(jobs: RunningJobs, who: str, what: str, rows: int) -> list[float]:
    """Samples of the slowest rank, in seconds."""
    parts = [(who, what)]
    told = jobs.request(PLAYERS[who], parts=parts, rows=rows, rounds=ROUNDS)
    return list(map(max, zip(*(reply["seconds"][0] for reply in told), strict=True)))


def balanced_rows(jobs: RunningJobs, who: str) -> int:
    """How many rows take as long to compute as the wire takes."""
    wire = statistics.median(ask(jobs, who, "wire", 1) + ask(jobs, who, "wire", 1))
    rows = 4
    for _ in range(4):  # what a row costs depends on how many there are
        computing = statistics.median(ask(jobs, who, "compute", rows))
        rows = min(MOST_ROWS, max(1, round(rows * wire / computing)))
    return rows


def pairs(only: Sequence[str]) -> list[tuple[str, str]]:
    ours = [(f"{who} step", f"{who} {part}") for who in only for part in PARTS[1:3]]
    others = [
        (f"{who} step", f"{other} step")
        for who in ("sharded", "replicated", "replicated native")
        for other in ("mpi", "ring")
    ]
    return [*ours, *others]


def shares(who: str, summary: dict[str, Any]) -> dict[str, float]:
    """What the contender's times are, in units of its larger part."""
    times = {what: summary[f"{who} {what}"]["median"] for what in PARTS}
    backward = times["compute"] - times["forward"]
    larger = max(times["compute"], times["wire"])
    possible = times["forward"] + max(backward, times["wire"])
    return {
        "step": times["step"] / larger,
        "in_a_row": times["in_a_row"] / larger,
        "possible": possible / larger,
    }


def show(out: Any, name: str, case: dict[str, Any]) -> None:
    rows = []
    for who, share in case["step_by_the_larger_part"].items():
        times = [
            f"{1e3 * case['summary'][f'{who} {what}']['median']:.0f}" for what in PARTS
        ]
        figures = (f"{share[each]:.3f}" for each in ("step", "in_a_row", "possible"))
        rows.append([who, *times, *figures])
    title = f"{name}, {case['rows']} rows: ms, and in units of max(compute, wire)"
    parts = [what.replace("_", " ") for what in PARTS]
    columns = ["contender", *parts, "step /", "in a row /", "possible /"]
    common.print_table(out, title, columns, rows)
    for pair, ratio in case["ratios"].items():
        if pair.count("step") == 2:
            low, high = ratio["interval"]
            out.print(f"{pair}: {ratio['ratio']:.3f} ({low:.3f} to {high:.3f})")
    out.print()


def draw(path: Path, cases: dict[str, Any]) -> None:
    """For each contender its parts, stacked, beside its step."""
    title = "A step beside what it is made of"
    with plots.picture(path, title, columns=len(cases), size=(10, 4.5)) as made:
        for axes, (name, case) in zip(
            made if len(cases) > 1 else [made], cases.items(), strict=True
        ):
            _draw_case(axes, case)
            axes.set_title(f"{name}, {case['rows']} rows", fontsize=10)


def _draw_case(axes: Any, case: dict[str, Any]) -> None:
    def times(what: str) -> list[float]:
        return [1e3 * case["summary"][f"{who} {what}"]["median"] for who in everyone]

    everyone = list(case["step_by_the_larger_part"])
    places = range(len(everyone))
    computing = times("compute")
    left = [place - 0.4 for place in places]
    axes.bar(left, computing, 0.38, align="edge", color=plots.OTHERS, label="compute")
    axes.bar(
        left,
        times("wire"),
        0.38,
        bottom=computing,
        align="edge",
        color=plots.THEIRS_TOO,
        label="wire",
    )
    bars = axes.bar(
        places, times("step"), 0.38, align="edge", color=plots.OURS, label="step"
    )
    labels = [
        f"{each['step']:.2f}" for each in case["step_by_the_larger_part"].values()
    ]
    axes.bar_label(bars, labels, fontsize=8, padding=2)
    axes.set_xticks(places, everyone)
    axes.set_ylabel("ms; over a step, its ratio to the larger part")
    axes.legend(frameon=False, ncols=3, loc="upper left")
    axes.margins(y=0.2)


if __name__ == "__main__":
    main()
