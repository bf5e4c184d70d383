"""How close to the link's limit is the communication of a step, on 2 and 4 hosts?

    mlxdist bench wire --json benchmarks/results/wire.json

Virtual hosts (tests/support/virtual_cluster) of one rank each, on links of 1 and 10
Gbit/s, and 32 MB of float32 gradients in the tensors of a transformer. An exact
all-reduce of S bytes sends at least 2(N-1)/N S from each rank: the bound is that over
the rate. The headers of Ethernet, IP and TCP alone take 1.046 times the bound.

    sharded exchange     gradients ready -> their mean on every rank, by an optimizer
                         that makes it the parameters; over the host transport
    sharded step         the same with SGD: gradients ready -> parameters ready
    replicated ...       the same, replicated, over the native transport
    mpi all_sum          MLX over MPI as installed, with the gradients in one array
    mpi average_gradients, mpi step
                         `nn.average_gradients`, and SGD after it
    ring ...             the same over MLX's ring
    sharded over ring    mlxdist, started by mpirun, with its data over MLX's ring

mlxdist, MPI and the ring are separate jobs on the same cluster, with interleaved
samples. A sample is the time of the slowest rank. The hosts share this machine's cores,
so MPI yields when idle, for all contenders; nothing else is set. CPU is a rank's
processor time, including that of waiting by spinning. Needs root on Linux, and
iproute2.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
from pathlib import Path

import common
from common import plots
from common.cluster_jobs import VirtualCluster, cluster_job
from common.jobs import running
from ranks.shapes import shapes_of
from rich.console import Console

SCRIPT = common.RANK_PROGRAMS / "wire_rank.py"
LEGEND = """\
ms: median of the slowest rank, lower is better. / bound: over 2(N-1)/N of the bytes at
the line rate; 1 is the limit. CPU ms: processor time of a rank, waiting included. In
brackets: 95% interval over the rounds."""
TENSORS = "8M"
UPSTREAM = ("all_sum", "average_gradients", "step")
JOBS = {  # of each contender
    "sharded exchange": "mlxdist",
    "sharded step": "mlxdist",
    "replicated exchange": "mlxdist",
    "replicated step": "mlxdist",
    "sharded over ring exchange": "mlxdist-ring",
    "sharded over ring step": "mlxdist-ring",
    **{f"mpi {name}": "mpi" for name in UPSTREAM},
    **{f"ring {name}": "ring" for name in UPSTREAM},
}
PAIRS = (
    ("sharded exchange", "mpi all_sum"),
    ("sharded exchange", "ring average_gradients"),
    ("sharded exchange", "ring all_sum"),
    ("sharded step", "mpi step"),
    ("sharded step", "ring step"),
    ("sharded over ring exchange", "ring average_gradients"),
    ("sharded over ring step", "ring step"),
    ("replicated exchange", "mpi all_sum"),
    ("replicated step", "mpi step"),
)
COLORS = {
    "sharded exchange": plots.BLUE,
    "replicated exchange": plots.LIGHT_BLUE,
    "sharded over ring exchange": plots.PALE_BLUE,
    "mpi all_sum": plots.ORANGE,
    "ring average_gradients": plots.LIGHT_ORANGE,
    "ring all_sum": plots.GRAY,
}
SAMPLES = 2  # of each contender in a round


def main() -> None:
    args = parse_arguments()
    console = common.make_console()
    result: common.Result = {"bytes": nbytes_of(TENSORS), "cases": {}}
    for rate, hosts in itertools.product(args.rates, args.hosts):
        name = f"{hosts} hosts, {rate}"
        case = measure(console, name, hosts, rate, args)
        result["cases"][name] = case
        show(console, name, case)
        common.write_json(args.json, __doc__, result)
    common.draw_result(args.json, draw, result["cases"])


def parse_arguments() -> argparse.Namespace:
    parser = common.make_parser(__doc__)
    common.add_hosts(parser, [2, 4])
    common.add_rates(parser, ["1gbit", "10gbit"])
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="WORD",
        help="contenders whose names contain one of these, such as sharded",
    )
    common.add_rounds(parser, "--turns")
    args = parser.parse_args()
    args.rounds = args.rounds or (1 if args.quick else 6)
    args.contenders = [
        name for name in JOBS if not args.only or any(w in name for w in args.only)
    ]
    return args


def measure(
    console: Console, name: str, hosts: int, rate: str, args: argparse.Namespace
) -> common.Result:
    """Return a case: the samples of all contenders on one cluster."""
    samples: dict[str, list[float]] = {c: [] for c in args.contenders}
    cpu_seconds: dict[str, list[float]] = {c: [] for c in args.contenders}
    with VirtualCluster(hosts, rate=rate) as cluster:
        kinds = dict.fromkeys(JOBS[contender] for contender in args.contenders)
        cluster_jobs = [cluster_job(cluster, kind, SCRIPT, TENSORS) for kind in kinds]
        total = args.rounds * len(args.contenders)
        with (
            running(cluster_jobs) as jobs,
            common.show_progress(console, total, name) as progress,
        ):
            for number in range(args.rounds):
                for contender in common.round_order(args.contenders, number):
                    replies = jobs.request(
                        JOBS[contender], name=contender, samples=SAMPLES
                    )
                    seconds = (reply["seconds"] for reply in replies)
                    samples[contender] += map(max, zip(*seconds, strict=True))
                    cpu_seconds[contender] += [s for r in replies for s in r["cpu"]]
                    progress.advance(contender)
        bound = 2 * (hosts - 1) / hosts * nbytes_of(TENSORS) * 8
        bound /= cluster.bits_per_second
    case = common.record(samples, PAIRS)
    case["bound_seconds"] = bound
    case["times_the_bound"] = {
        contender: each["median"] / bound for contender, each in case["summary"].items()
    }
    case["cpu_seconds_of_a_rank"] = {
        contender: statistics.median(each) for contender, each in cpu_seconds.items()
    }
    return case


def nbytes_of(tensors: str) -> int:
    return sum(4 * math.prod(shape) for shape in shapes_of(tensors).values())


def show(console: Console, name: str, case: common.Result) -> None:
    rows = []
    for contender, summary in case["summary"].items():
        low, high = (1e3 * each for each in summary["quartiles"])
        rows.append(
            [
                contender,
                f"{1e3 * summary['median']:.0f}",
                f"{low:.0f} to {high:.0f}",
                f"{case['times_the_bound'][contender]:.3f}",
                f"{1e3 * case['cpu_seconds_of_a_rank'][contender]:.0f}",
            ]
        )
    title = f"{name}: the bound is {1e3 * case['bound_seconds']:.0f} ms"
    columns = ["contender", "ms", "quartiles", "/ bound", "CPU ms"]
    common.print_table(console, title, columns, rows, LEGEND)
    common.print_verdicts(console, case["ratios"])
    console.print()


def draw(path: Path, cases: common.Result) -> None:
    """Draw each contender's time as a multiple of the bound, as bars."""
    measured = {name for case in cases.values() for name in case["times_the_bound"]}
    colors = {name: color for name, color in COLORS.items() if name in measured}
    width = 0.85 / len(colors)
    with plots.figure(path, "One exchange of 32 MB against the link's limit") as axes:
        for number, (contender, color) in enumerate(colors.items()):
            heights = [c["times_the_bound"].get(contender, 0) for c in cases.values()]
            offset = (number - len(colors) / 2) * width
            left = [x + offset for x in range(len(heights))]
            bars = axes.bar(
                left, heights, width, align="edge", color=color, label=contender
            )
            axes.bar_label(bars, fmt="%.2f", fontsize=7, padding=2)
        axes.axhline(1, color=plots.BLACK, linewidth=0.8)
        labels = [
            f"{name}\n{1e3 * case['bound_seconds']:.0f} ms"
            for name, case in cases.items()
        ]
        axes.set_xticks(range(len(cases)), labels)
        axes.set_ylabel("time / the bound (its ms below)")
        axes.legend(
            frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.12)
        )


if __name__ == "__main__":
    main()
