"""How much memory does a rank need, for which number of ranks?

    mlxdist bench memory --json benchmarks/results/memory.json

AdamW in float32 on 1, 2, 4 and 8 ranks of this machine, which may have fewer cores:
sharded, replicated, and upstream (`nn.average_gradients` and MLX's optimizer,
compiled). "peak" is the kernel's, over steps with gradients in new arrays. "steady" is
resident after a step; it is close to the peak, since mlxdist keeps freed memory. Memory
that MPI shares between ranks is counted separately. All figures are those of the rank
that needs most, and are compared with the formula

    parameters + gradients + state / N + 2 buckets + the bare process,

where the state is not divided if it is not sharded. The bare process has taken a step
with ten tiny tensors. Linux only, because it reads /proc.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path

import common
from common import plots
from common.jobs import mpi_job, running, upstream_environment
from rich.console import Console

from mlxdist.layout.buckets import DEFAULT_BUCKET_SIZE

SCRIPT = common.RANK_PROGRAMS / "memory_rank.py"
UPSTREAM = "upstream"
COLORS = {
    "sharded": plots.BLUE,
    "replicated": plots.LIGHT_BLUE,
    UPSTREAM: plots.ORANGE,
}
CONTENDERS = tuple(COLORS)


def main() -> None:
    args = parse_arguments()
    console = common.make_console()
    result: common.Result = {"tensors": args.tensors, "measured": []}
    total = len(args.ranks) * len(args.only)
    with common.show_progress(console, total) as progress:
        for ranks in args.ranks:
            for contender in args.only:
                measured = measure(contender, args.tensors, ranks, args.steps)
                result["measured"].append(measured)
                progress.advance(f"{contender}, {ranks} ranks")
    show(console, result["measured"])
    common.write_json(args.json, __doc__, result)
    if args.json:
        with contextlib.suppress(ImportError):
            draw(args.json, result["measured"], args.tensors)


def parse_arguments() -> argparse.Namespace:
    parser = common.make_parser(__doc__)
    parser.add_argument("--tensors", help="such as 50M (default: 25M; quick: 2M)")
    parser.add_argument("--ranks", nargs="+", type=common.positive, metavar="N")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=CONTENDERS)
    parser.add_argument("--steps", type=common.positive, default=5)
    args = parser.parse_args()
    args.tensors = args.tensors or ("2M" if args.quick else "25M")
    args.ranks = args.ranks or ([1, 2] if args.quick else [1, 2, 4, 8])
    if not Path("/proc/self/smaps_rollup").exists():
        sys.exit("memory: error: it reads /proc, which only Linux has")
    return args


def measure(contender: str, tensors: str, ranks: int, steps: int) -> common.Result:
    """Return the bytes of the rank that needs most, and the formula's, of one job."""
    upstream = contender == UPSTREAM
    environment = upstream_environment() if upstream else {}
    arguments = (contender, tensors)
    job = mpi_job(contender, ranks, SCRIPT, *arguments, environment=environment)
    with running([job]) as jobs:
        replies = jobs.request(contender, steps=steps)
    largest = max(replies, key=lambda reply: reply["peak"])
    # AdamW's two moments; its other state is scalars.
    state = 2 * largest["parameters"] // (ranks if contender == "sharded" else 1)
    buckets = 0 if upstream else 2 * DEFAULT_BUCKET_SIZE
    formula = 2 * largest["parameters"] + state + buckets + largest["bare"]
    return {
        "kind": contender,
        "ranks": ranks,
        **largest,
        "formula": formula,
        "peak / formula": largest["peak"] / formula,
        "every_rank": replies,
    }


def show(console: Console, measured: list[common.Result]) -> None:
    names = ("bare", "state", "steady", "peak", "formula", "mpi_shared", "mlx_peak")
    rows = [
        (
            f"{case['kind']}, {case['ranks']} ranks",
            *(f"{case[name] / 1e6:.0f}" for name in names),
            f"{case['peak / formula']:.3f}",
        )
        for case in measured
    ]
    titles = [name.replace("_", " ") for name in names]
    columns = ["MB a rank", *titles, "peak / formula"]
    common.print_table(console, "memory", columns, rows)


def draw(path: Path, measured: list[common.Result], tensors: str) -> None:
    """Draw each contender's peak over the number of ranks, with the formula dashed."""
    title = f"Peak memory of a rank, AdamW, {tensors} parameters in float32"
    with plots.figure(path, title, size=(8, 5)) as axes:
        for contender, color in COLORS.items():
            cases = [case for case in measured if case["kind"] == contender]
            if not cases:
                continue
            ranks = [case["ranks"] for case in cases]
            peaks = [case["peak"] / 1e6 for case in cases]
            formula = [case["formula"] / 1e6 for case in cases]
            axes.plot(ranks, peaks, "o-", color=color, label=f"{contender}, peak")
            if contender != UPSTREAM:
                label = f"{contender}, formula"
                axes.plot(ranks, formula, "--", color=color, linewidth=1, label=label)
        axes.set_xscale("log", base=2)
        axes.set_xticks(*[sorted({case["ranks"] for case in measured})] * 2)
        axes.set(xlabel="ranks", ylabel="MB", ylim=(0, None))
        axes.legend(frameon=False)


if __name__ == "__main__":
    main()
