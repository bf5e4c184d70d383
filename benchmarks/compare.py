"""Is a step of this checkout slower than one of another checkout?

    mlxdist bench compare --against PATH --json compare.json

The contenders are "before", the mlxdist of the checkout at PATH, and "after", the
mlxdist of this one. Both run the same rank program with the same Python environment, on
2 ranks with one thread each, as jobs whose samples are interleaved. A sample is the
time of the slowest rank.

The cases of `step` time AdamW from gradients evaluated to parameters and state
evaluated. "transformer update" is that of `guard_cost`, with all checks, and
"transformer step" is a whole training step of the same model. A case is followed by
whether both checkouts came to the same bits.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import common
from common import step_cases
from common.jobs import mpi_job, running
from rich.console import Console

SCRIPT = common.RANK_PROGRAMS / "compare_rank.py"
LEGEND = """\
ms: median of the slowest rank's step; after / before: below 1 is faster now, with its
95% interval; same bits: whether both checkouts came to the same parameters."""
CONTENDERS = ("before", "after")
WARMUP = 1  # steps before the samples of each round


class Case(NamedTuple):
    """A case, the arguments of its rank program, and how many samples to take."""

    name: str
    arguments: tuple[str, ...]
    rounds: int
    steps: int


def main() -> None:
    args = parse_arguments()
    console = common.make_console()
    checkouts = {"before": args.against, "after": common.ROOT}
    result: common.Result = {
        "checkouts": {name: commit_of(path) for name, path in checkouts.items()},
        "cases": {},
    }
    for case in args.cases:
        case = case._replace(rounds=args.rounds or case.rounds)
        result["cases"][case.name] = measure(console, case, checkouts, args.n)
        common.write_json(args.json, __doc__, result)
    show(console, result["cases"])


def parse_arguments() -> argparse.Namespace:
    parser = common.make_parser(__doc__)
    parser.add_argument(
        "--against", type=checkout, required=True, metavar="PATH", help="a checkout"
    )
    parser.add_argument(
        "-n", type=common.positive, default=2, help="how many ranks (default: 2)"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="WORD",
        help="cases whose names contain one of these, such as '50M float32', sharded "
        "or transformer",
    )
    common.add_rounds(parser)
    args = parser.parse_args()
    args.cases = cases(args.only, quick=args.quick)
    if not args.cases:
        parser.error(f"no case has any of {args.only} in its name")
    return args


def checkout(text: str) -> Path:
    """A folder with the package's source, for argparse."""
    path = Path(text).resolve()
    if not (path / "mlxdist" / "__init__.py").exists():
        raise argparse.ArgumentTypeError(f"found no mlxdist/__init__.py in {text}")
    return path


def commit_of(path: Path) -> str | None:
    """Return what git calls the state of a checkout; None where it is not git's."""
    command = ["git", "-C", str(path), "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() or None


def cases(only: list[str], *, quick: bool) -> list[Case]:
    """Return all cases, or those whose names contain one of the words."""
    all_cases = [
        Case(
            f"{case.name}, {options}",
            ("tensors", case.tensors, case.dtype, options),
            case.rounds if quick else 2 * case.rounds,
            case.steps,
        )
        for case in step_cases.cases([], quick=quick)
        for options in step_cases.MLXDIST
    ] + [
        Case(f"transformer {part}", ("transformer", part), 3 if quick else 25, 4)
        for part in ("update", "step")
    ]
    return [c for c in all_cases if not only or any(word in c.name for word in only)]


def measure(
    console: Console, case: Case, checkouts: dict[str, Path], ranks: int
) -> common.Result:
    """Return the samples of both contenders, round by round, and their ratio."""
    samples: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    load = common.other_load()
    contenders = [
        mpi_job(name, ranks, SCRIPT, *case.arguments, checkout=checkouts[name])
        for name in CONTENDERS
    ]
    total = case.rounds * len(CONTENDERS)
    with (
        running(contenders) as jobs,
        common.show_progress(console, total, case.name) as progress,
    ):
        for number in range(case.rounds):
            for name in common.round_order(CONTENDERS, number):
                replies = jobs.request(name, steps=case.steps, warmup=WARMUP)
                seconds = (reply["seconds"] for reply in replies)
                samples[name] += map(max, zip(*seconds, strict=True))
                progress.advance(name)
        digests = {name: jobs.request(name, digest=True) for name in CONTENDERS}
    for name, replies in digests.items():
        check_package(name, checkouts[name], replies)
    checksums = {reply["crc32"] for replies in digests.values() for reply in replies}
    return {
        "ranks": ranks,
        "load_before": load,
        "identical": len(checksums) == 1,
        **common.record(samples, [("after", "before")]),
    }


def check_package(name: str, path: Path, replies: list[dict[str, Any]]) -> None:
    """Exit with an error where a rank has imported the mlxdist of another checkout."""
    for reply in replies:
        if reply["package"] != str(path):
            sys.exit(
                f"compare: error: a rank of {name!r} imported mlxdist from "
                f"{reply['package']}, wanted {path}"
            )


def show(console: Console, measured: common.Result) -> None:
    rows = []
    for name, case in measured.items():
        (ratio,) = case["ratios"].values()
        low, high = ratio["interval"]
        medians = (f"{1e3 * case['summary'][c]['median']:.2f}" for c in CONTENDERS)
        interval = f"{low:.3f} to {high:.3f}"
        same = "yes" if case["identical"] else "NO"
        rows.append([name, *medians, f"{ratio['ratio']:.3f}", interval, same])
    columns = ["case", "before ms", "after ms", "after / before", "19 in 20"]
    common.print_table(console, "two checkouts", [*columns, "same bits"], rows, LEGEND)
    for name, case in measured.items():
        for pair, ratio in case["ratios"].items():
            common.print_verdict(console, f"{name}: {common.verdict_of(pair, ratio)}")


if __name__ == "__main__":
    main()
