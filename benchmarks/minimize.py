"""How long does a step of `minimize` take, compared with `update`?

    mlxdist bench minimize --json minimize.json

Training steps of a transformer of 7.9 million parameters with AdamW, from the batch to
evaluated parameters, loss and state: by `minimize`, and by `nn.value_and_grad` and
`update`. With sharded and with replicated state, and sharded with check_finite=False
("unchecked"), which lets `minimize` step each bucket as it arrives. On one and two
ranks of this machine, and on two virtual hosts with one rank each, whose link has the
given rates. Both contenders of a pair share a process and are interleaved. A sample is
the average of some steps in a row: wall time of the slowest rank, and processor time of
all ranks together.

The wall time of `minimize` should be at most 1.02 of that of `update`, and less where
there is a wire. Virtual hosts need root on Linux, and iproute2; `--cases` leaves them
out.
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack

import common
from common.jobs import mpi_job, running
from ranks.minimize_rank import CALLS, CONTENDERS
from rich.console import Console

SCRIPT = common.RANK_PROGRAMS / "minimize_rank.py"
LEGEND = """\
Medians; lower is better. The first two columns and their ratio are wall time of the
slowest rank, CPU is processor time of all ranks. A ratio below 1 is faster with
`minimize`; in brackets its 95% interval over the rounds."""
ON_ONE_MACHINE = {"1 rank": 1, "2 ranks": 2}
HOSTS = "2 hosts"
JOB = "mlxdist"
CLOCKS = ("wall", "processor")


def main() -> None:
    args = parse_arguments()
    console = common.make_console()
    result: common.Result = {"cases": {}}
    for name in args.cases:
        for rate in args.rates if name == HOSTS else [None]:
            title = name if rate is None else f"{name}, {rate}"
            result["cases"][title] = measure(console, title, args, rate)
            show(console, title, result["cases"][title])
            common.write_json(args.json, __doc__, result)


def parse_arguments() -> argparse.Namespace:
    parser = common.make_parser(__doc__)
    cases = [*ON_ONE_MACHINE, HOSTS]
    parser.add_argument(
        "--cases", nargs="+", choices=cases, default=cases, metavar="NAME"
    )
    parser.add_argument(
        "--contenders",
        nargs="+",
        choices=list(CONTENDERS),
        default=list(CONTENDERS),
        metavar="NAME",
        help=f"of {', '.join(CONTENDERS)}",
    )
    common.add_rates(parser, ["1gbit"])
    parser.add_argument(
        "--rows", type=common.positive, help="of a rank's batch, of 4 tokens each"
    )
    common.add_rounds(parser)
    args = parser.parse_args()
    args.rounds = args.rounds or (2 if args.quick else 8)
    args.rows = args.rows or (1 if args.quick else 2)
    return args


def measure(
    console: Console, title: str, args: argparse.Namespace, rate: str | None
) -> common.Result:
    """Return the samples of a case; with a rate, on virtual hosts."""
    names = [f"{each} {call}" for each in args.contenders for call in CALLS]
    samples: dict[str, dict[str, list[float]]] = {
        clock: {name: [] for name in names} for clock in CLOCKS
    }
    with ExitStack() as stack:
        if rate is None:
            job = mpi_job(JOB, ON_ONE_MACHINE[title], SCRIPT)
        else:
            from common.cluster_jobs import VirtualCluster, cluster_job

            cluster = stack.enter_context(VirtualCluster(2, rate=rate))
            job = cluster_job(cluster, JOB, SCRIPT)
        jobs = stack.enter_context(running([job]))
        total = args.rounds * len(names)
        progress = stack.enter_context(common.show_progress(console, total, title))
        for number in range(args.rounds):
            for name in common.round_order(names, number):
                replies = jobs.request(JOB, name=name, rows=args.rows)
                samples["wall"][name].append(max(r["wall"] for r in replies))
                samples["processor"][name].append(sum(r["processor"] for r in replies))
                progress.advance(name)
    pairs = [(f"{each} minimize", f"{each} update") for each in args.contenders]
    return {
        "rows": args.rows,
        **{clock: common.record(samples[clock], pairs) for clock in CLOCKS},
    }


def show(console: Console, title: str, case: common.Result) -> None:
    rows = []
    for pair in case["wall"]["ratios"]:
        row = [pair.split(" minimize")[0]]
        for clock in CLOCKS:
            record = case[clock]
            medians = [record["summary"][n]["median"] for n in pair.split(" / ")]
            row += [f"{1e3 * seconds:.1f}" for seconds in medians]
            row.append(common.format_ratio(record["ratios"][pair]))
        rows.append(row)
    columns = ["AdamW", "minimize", "update", "ratio", "CPU", "CPU", "ratio"]
    common.print_table(console, f"{title}, ms a step", columns, rows, LEGEND)
    common.print_verdicts(console, case["wall"]["ratios"])


if __name__ == "__main__":
    main()
