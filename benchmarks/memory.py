"""How much memory does a rank need, against the number of ranks?

    mlxdist bench memory --json benchmarks/results/memory.json

AdamW in float32 on 1, 2, 4 and 8 ranks of this machine, which may outnumber its cores:
sharded, replicated, and upstream (`nn.average_gradients` and MLX's optimizer,
compiled). Peak is the kernel's, over steps with gradients in fresh arrays; steady is
what is resident after a step, and as the package keeps freed memory, near the peak.
Memory that ranks share through MPI is counted apart. The figure is that of the rank
that needs most. Beside it the formula

    parameters + gradients + state / N + 2 buckets + the bare process,

with state undivided where it is not sharded. The bare process is one that has done a
step of ten tiny tensors. Linux only: it reads /proc.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path
from typing import Any

import common
from common import plots
from common.jobs import mpi_job, running
from common.progress import Progress
from ranks.contenders import UPSTREAM

from mlxdist.launcher import openmpi
from mlxdist.layout.buckets import DEFAULT_BUCKET_SIZE

SCRIPT = common.BENCHMARKS / "ranks" / "memory_rank.py"
KINDS = ("sharded", "replicated", "upstream")
COLORS = dict(zip(KINDS, (plots.OURS, plots.OURS_TOO, plots.THEIRS), strict=True))


def main() -> None:
    args = parse_arguments()
    out = common.console()
    result: dict[str, Any] = {"tensors": args.tensors, "measured": []}
    with Progress(out, len(args.ranks) * len(args.only)) as progress:
        for ranks in args.ranks:
            for kind in args.only:
                found = measure(kind, args.tensors, ranks, args.steps)
                result["measured"].append(found)
                progress.advance(f"{kind}, {ranks} ranks")
    show(out, result["measured"])
    if args.json:
        common.write_json(args.json, __doc__.splitlines()[0], result)
        with contextlib.suppress(ImportError):
            draw(args.json, result["measured"], args.tensors)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tensors", help="such as 50M (default: 25M; quick: 2M)")
    parser.add_argument("--ranks", nargs="+", type=common.positive, metavar="N")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--steps", type=common.positive, default=5)
    common.add_options(parser)
    args = parser.parse_args()
    args.tensors = args.tensors or ("2M" if args.quick else "25M")
    args.ranks = args.ranks or ([1, 2] if args.quick else [1, 2, 4, 8])
    if not Path("/proc/self/smaps_rollup").exists():
        sys.exit("memory: error: it reads /proc, which is Linux's")
    return args


def measure(kind: str, tensors: str, ranks: int, steps: int) -> dict[str, Any]:
    """One job: the rank that needs most, and what the formula says of it, in bytes."""
    settings = {}
    if kind in UPSTREAM:
        settings["MLX_MPI_LIBNAME"] = openmpi.find_libmpi() or ""
    with running([mpi_job(kind, ranks, SCRIPT, kind, tensors, **settings)]) as jobs:
        every = jobs.request(kind, steps=steps)
    most = max(every, key=lambda told: told["peak"])
    # Of the state, AdamW's two moments; the rest are numbers.
    state = 2 * most["parameters"] // (ranks if kind == "sharded" else 1)
    buckets = 0 if kind in UPSTREAM else 2 * DEFAULT_BUCKET_SIZE
    formula = 2 * most["parameters"] + state + buckets + most["bare"]
    return {
        "kind": kind,
        "ranks": ranks,
        **most,
        "formula": formula,
        "peak / formula": most["peak"] / formula,
        "every_rank": every,
    }


def show(out: Any, measured: list[dict[str, Any]]) -> None:
    names = ("bare", "state", "steady", "peak", "formula", "mpi_shared", "mlx_peak")
    rows = [
        (
            f"{found['kind']}, {found['ranks']} ranks",
            *(f"{found[name] / 1e6:.0f}" for name in names),
            f"{found['peak / formula']:.3f}",
        )
        for found in measured
    ]
    titles = [name.replace("_", " ") for name in names]
    columns = ["MB a rank", *titles, "peak / formula"]
    common.print_table(out, "memory", columns, rows)


def draw(path: Path, measured: list[dict[str, Any]], tensors: str) -> None:
    """Peak of each kind against the number of ranks, with the formula dashed."""
    title = f"Peak memory of a rank, AdamW, {tensors} parameters in float32"
    with plots.picture(path, title, size=(8, 5)) as axes:
        for kind, color in COLORS.items():
            found = [each for each in measured if each["kind"] == kind]
            if not found:
                continue
            ranks = [each["ranks"] for each in found]
            peaks = [each["peak"] / 1e6 for each in found]
            formula = [each["formula"] / 1e6 for each in found]
            axes.plot(ranks, peaks, "o-", color=color, label=f"{kind}, peak")
            if kind not in UPSTREAM:
                label = f"{kind}, formula"
                axes.plot(ranks, formula, "--", color=color, linewidth=1, label=label)
        axes.set_xscale("log", base=2)
        axes.set_xticks(*[sorted({each["ranks"] for each in measured})] * 2)
        axes.set(xlabel="ranks", ylabel="MB", ylim=(0, None))
        axes.legend(frameon=False)


if __name__ == "__main__":
    main()
