"""How much memory does a rank need, for which number of ranks, mode and state dtype?

    mlxdist bench memory --json benchmarks/results/memory.json

AdamW on 1, 2, 4 and 8 ranks of this machine, which may have fewer cores, with
parameters in float32, and in bfloat16 with masters: `update` with replicated and with
sharded state, `minimize`, and `minimize` with state in 8 bits (and masters of 24 bits),
also with check_finite=False ("unchecked"), where no mean gradient waits for the others.
In float32 also upstream: `nn.average_gradients` and MLX's optimizer, compiled.

"peak" is the kernel's, the most of all steps and ranks, without memory that MPI shares
between ranks. It is compared with what `mlxdist plan` predicts: the sum of parameters,
gradients, state, masters, buckets, and the bare process, which has taken a step with
ten tiny tensors here. "state" is bytes a parameter, and all but the norms have it in 8
bits, the embedding too. The picture also has what the sum gives for a model of 8
billion parameters. Linux only, because it reads /proc.

    mlxdist bench memory --limit 4000 --json benchmarks/results/memory_limit.json

trains, in bfloat16 with masters and under a memory limit of the kernel for each rank, a
model that the kernel kills on one rank, and replicated on two; the same with `minimize`
on two; and one of twice the size. Needs root, and control groups of version 1.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import sys
from pathlib import Path

import common
from common import memory_plot
from common.jobs import mpi_job, running, upstream_environment
from ranks.memory_modes import MODES, UPSTREAM, predict
from ranks.shapes import shapes_of
from rich.console import Console

SCRIPT = common.RANK_PROGRAMS / "memory_rank.py"
LEGEND = """\
peak: most memory of any rank in a step, MB, less that of the process without a model;
lower is better. peak / predicted: 1 is exact, above 1 is more than predicted. state B:
bytes of optimizer state for each parameter, on the rank that holds most."""
LEGEND_OF_LIMIT = """\
peak, predicted: MB of the rank that needs most; killed: by the kernel, at the limit."""
DTYPES = ("float32", "bfloat16")


def main() -> None:
    args = parse_arguments()
    console = common.make_console()
    if args.limit:
        train_under_limit(console, args)
        return
    result: common.Result = {"tensors": args.tensors, "measured": []}
    cases = [
        case
        for case in itertools.product(args.dtypes, args.modes, args.ranks)
        if case[:2] != ("bfloat16", UPSTREAM)  # it has no masters
    ]
    with common.show_progress(console, len(cases)) as progress:
        for dtype, mode, ranks in cases:
            measured = measure(mode, args.tensors, dtype, ranks, args.steps)
            result["measured"].append(measured)
            progress.advance(f"{dtype}, {mode}, {ranks} ranks")
    show(console, result["measured"])
    common.write_json(args.json, __doc__, result)
    if args.json:
        with contextlib.suppress(ImportError):
            memory_plot.draw(args.json, result["measured"], args.tensors)
            if {"float32", *memory_plot.PEAKS} <= {*args.dtypes, *args.modes}:
                peaks = args.json.with_name(f"{args.json.stem}_peaks")
                memory_plot.draw_peaks(peaks, result["measured"], args.tensors)


def train_under_limit(console: Console, args: argparse.Namespace) -> None:
    from common import memory_limit  # needs the tests' folder

    if problem := memory_limit.problem():
        sys.exit(f"memory: error: {problem}")
    with common.show_progress(console, len(memory_limit.CASES)) as progress:
        results = memory_limit.measure_under(args.limit * 10**6, progress.advance)
    rows = [
        (
            f"{case['mode']}, {case['tensors']}, {case['ranks']} ranks",
            f"{max(case['peaks']) / 1e6:.0f}",
            f"{case['predicted'] / 1e6:.0f}",
            "killed" if case["killed"] else "trained",
        )
        for case in results
    ]
    title = f"{args.limit} MB a rank"
    columns = ["MB a rank", "peak", "predicted", ""]
    common.print_table(console, title, columns, rows, LEGEND_OF_LIMIT)
    result = {"limit MB": args.limit, "dtype": memory_limit.DTYPE, "jobs": results}
    common.write_json(args.json, __doc__, result)


def parse_arguments() -> argparse.Namespace:
    parser = common.make_parser(__doc__)
    parser.add_argument("--tensors", help="such as 50M (default: 25M; quick: 2M)")
    parser.add_argument("--ranks", nargs="+", type=common.positive, metavar="N")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES)
    parser.add_argument("--steps", type=common.positive, default=5)
    parser.add_argument("--limit", type=common.positive, metavar="MB", help="of a rank")
    args = parser.parse_args()
    args.tensors = args.tensors or ("2M" if args.quick else "25M")
    args.ranks = args.ranks or ([1, 2] if args.quick else [1, 2, 4, 8])
    if not Path("/proc/self/smaps_rollup").exists():
        sys.exit("memory: error: it reads /proc, which only Linux has")
    return args


def measure(
    mode: str, tensors: str, dtype: str, ranks: int, steps: int
) -> common.Result:
    """Return the bytes of the rank that needs most, and those predicted, of one job."""
    environment = upstream_environment() if mode == UPSTREAM else {}
    job = mpi_job(mode, ranks, SCRIPT, mode, tensors, dtype, environment=environment)
    with running([job]) as jobs:
        every_rank = jobs.request(mode, steps=steps)
    peaks = [max(s["peak"] for s in reply["samples"]) for reply in every_rank]
    peak, largest = max(zip(peaks, every_rank, strict=True), key=lambda pair: pair[0])
    predicted = predict(MODES[mode], shapes_of(tensors), dtype, ranks, largest["bare"])
    state = max(reply["state"] for reply in every_rank)
    return {
        "mode": mode,
        "dtype": dtype,
        "ranks": ranks,
        "peak": peak,
        "predicted": predicted.total,
        "peak / predicted": peak / predicted.total,
        "state bytes a parameter": state / largest["elements"],
        "terms": {term.name: term.nbytes for term in predicted.terms},
        "every_rank": every_rank,
    }


def show(console: Console, measured: list[common.Result]) -> None:
    rows = [
        (
            f"{case['dtype']}, {case['mode']}, {case['ranks']} ranks",
            *(f"{case[name] / 1e6:.0f}" for name in ("peak", "predicted")),
            f"{case['peak / predicted']:.3f}",
            f"{case['state bytes a parameter']:.3f}",
        )
        for case in measured
    ]
    columns = ["MB a rank", "peak", "predicted", "peak / predicted", "state B"]
    common.print_table(console, "memory", columns, rows, LEGEND)
    ratios = [case["peak / predicted"] for case in measured]
    text = f"measured peaks are {min(ratios):.2f} to {max(ratios):.2f} of the predicted"
    common.print_verdict(console, text)


if __name__ == "__main__":
    main()
