"""How close to the wire's limit is the exchange of a step, between 2 and 4 hosts?

    mlxdist bench wire --json benchmarks/results/wire.json

Virtual hosts (launch/virtual_cluster) of one rank each, on wires of 1 and 10 Gbit/s,
and 32 MB of float32 gradients in the tensors of a transformer. An exact all-reduce of S
bytes sends at least 2(N-1)/N S from each rank: the bound is that over the rate. Headers
of Ethernet, IP and TCP alone cost 1.046 of it.

    sharded exchange     gradients ready -> their mean on every rank, by an optimizer
                         that makes it the parameters: host transport
    sharded step         the same with SGD: gradients ready -> parameters ready
    replicated ...       the same, replicated, native transport
    mpi all_sum          MLX over MPI as installed, the gradients in one flat array
    mpi average_gradients, mpi step
                         `nn.average_gradients`, and SGD after it
    ring ...             the same over MLX's ring

Ours, MPI and the ring are jobs of their own that take turns on the same cluster. A
sample is the time of the slowest rank. The hosts share this machine's cores, and so all
of MPI yields when idle; no other setting is made. CPU is what a rank's process computes
for, waiting by spinning included. Needs root on Linux, and iproute2.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import math
import statistics
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
from common.jobs import running
from common.progress import Progress
from ranks.shapes import shapes_of

SCRIPT = common.BENCHMARKS / "ranks" / "wire_rank.py"
TENSORS = "8M"
OURS = (
    "sharded exchange",
    "sharded step",
    "replicated exchange",
    "replicated step",
)
THEIRS = ("all_sum", "average_gradients", "step")
PLAYERS = {
    "ours": OURS,
    "mpi": tuple(f"mpi {each}" for each in THEIRS),
    "ring": tuple(f"ring {each}" for each in THEIRS),
}
PAIRS = (
    ("sharded exchange", "mpi all_sum"),
    ("sharded exchange", "ring average_gradients"),
    ("sharded exchange", "ring all_sum"),
    ("sharded step", "mpi step"),
    ("sharded step", "ring step"),
    ("replicated exchange", "mpi all_sum"),
    ("replicated step", "mpi step"),
)
COLORS = {
    "sharded exchange": plots.OURS,
    "replicated exchange": plots.OURS_TOO,
    "mpi all_sum": plots.THEIRS,
    "ring average_gradients": plots.THEIRS_TOO,
    "ring all_sum": plots.OTHERS,
}
ROUNDS = 2  # samples in one turn


def main() -> None:
    args = parse_arguments()
    out = common.console()
    result: dict[str, Any] = {"bytes": nbytes_of(TENSORS), "cases": {}}
    for rate, hosts in itertools.product(args.rates, args.hosts):
        name = f"{hosts} hosts, {rate}"
        case = measure(out, name, hosts, rate, args, result["bytes"])
        result["cases"][name] = case
        show(out, name, case)
        if args.json:
            common.write_json(args.json, __doc__.splitlines()[0], result)
    if args.json:
        with contextlib.suppress(ImportError):
            draw(args.json, result["cases"])


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--hosts", nargs="+", type=common.several, default=[2, 4], metavar="N"
    )
    parser.add_argument(
        "--rates",
        nargs="+",
        type=common.rate,
        default=["1gbit", "10gbit"],
        metavar="RATE",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="WORD",
        help="contenders whose names contain one of these, such as sharded",
    )
    parser.add_argument(
        "--turns", type=common.positive, help="of each contender in each case"
    )
    common.add_options(parser)
    args = parser.parse_args()
    args.turns = args.turns or (1 if args.quick else 6)
    return args


def measure(
    out: Any, name: str, hosts: int, rate: str, args: argparse.Namespace, nbytes: int
) -> dict[str, Any]:
    """One cluster, on which all contenders take turns."""
    wanted = {
        what: player
        for player, every in PLAYERS.items()
        for what in every
        if not args.only or any(word in what for word in args.only)
    }
    samples: dict[str, list[float]] = {what: [] for what in wanted}
    computing: dict[str, list[float]] = {what: [] for what in wanted}
    with VirtualCluster(hosts, rate=rate) as cluster:
        starts = {
            "ours": mpi_on_hosts,
            "mpi": plain_mlx_on_hosts,
            "ring": ring_on_hosts,
        }
        players = [
            starts[player](cluster, player, SCRIPT, player, TENSORS)
            for player in dict.fromkeys(wanted.values())
        ]
        total = args.turns * len(wanted)
        with running(players) as jobs, Progress(out, total, name) as progress:
            for number in range(args.turns):
                for what in common.order_of(list(wanted), number):
                    told = jobs.request(wanted[what], what=what, rounds=ROUNDS)
                    seconds = (reply["seconds"] for reply in told)
                    samples[what] += map(max, zip(*seconds, strict=True))
                    computing[what] += [s for reply in told for s in reply["cpu"]]
                    progress.advance(what)
        bound = 2 * (hosts - 1) / hosts * nbytes * 8 / cluster.bits_per_second
    case = common.record(samples, PAIRS)
    case["bound_seconds"] = bound
    case["times_the_bound"] = {
        what: each["median"] / bound for what, each in case["summary"].items()
    }
    case["cpu_seconds_of_a_rank"] = {
        what: statistics.median(each) for what, each in computing.items()
    }
    return case


def nbytes_of(tensors: str) -> int:
    return sum(4 * math.prod(shape) for shape in shapes_of(tensors).values())


def show(out: Any, name: str, case: dict[str, Any]) -> None:
    rows = []
    for what, summary in case["summary"].items():
        low, high = (1e3 * each for each in summary["quartiles"])
        rows.append(
            [
                what,
                f"{1e3 * summary['median']:.0f}",
                f"{low:.0f} to {high:.0f}",
                f"{case['times_the_bound'][what]:.3f}",
                f"{1e3 * case['cpu_seconds_of_a_rank'][what]:.0f}",
            ]
        )
    title = f"{name}: the bound is {1e3 * case['bound_seconds']:.0f} ms"
    columns = ["contender", "ms", "quartiles", "/ bound", "CPU ms"]
    common.print_table(out, title, columns, rows)
    for pair, ratio in case["ratios"].items():
        low, high = ratio["interval"]
        out.print(f"{pair}: {ratio['ratio']:.3f} ({low:.3f} to {high:.3f})")
    out.print()


def draw(path: Path, cases: dict[str, Any]) -> None:
    """Bars: each contender's time as a multiple of the bound, case by case."""
    width = 0.85 / len(COLORS)
    with plots.picture(path, "One exchange of 32 MB against the wire's limit") as axes:
        for number, (what, color) in enumerate(COLORS.items()):
            heights = [case["times_the_bound"].get(what, 0) for case in cases.values()]
            places = [
                place + (number - len(COLORS) / 2) * width
                for place in range(len(heights))
            ]
            bars = axes.bar(
                places, heights, width, align="edge", color=color, label=what
            )
            axes.bar_label(bars, fmt="%.2f", fontsize=7, padding=2)
        axes.axhline(1, color=plots.LINE, linewidth=0.8)
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
