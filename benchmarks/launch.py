"""What does `mlxdist run` add to the time that a bare mpirun takes?

    mlxdist bench launch --json benchmarks/results/launch.json

Both start the same script on the same number of ranks of this machine, in interleaved
rounds, timed from the command to its exit. The script `nothing` ends at once, which
shows the launcher alone; `sum` joins MPI with mlxdist, sums a number and ends. The
difference of the medians must be under 0.3 s.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import common
from common.jobs import mpirun
from rich.console import Console

from mlxdist.launcher.environment import without_mpi

SCRIPTS = {
    "nothing": "",
    "sum": "import mlxdist\nworld = mlxdist.init()\nassert world.mean(1.0) == 1\n",
}
MLXDIST, MPIRUN = "mlxdist run", "mpirun"
BOUND = 0.3  # seconds
LEGEND = """\
s: median of the seconds from the command to its exit, and quartiles; lower is better.
nothing, sum: scripts that end at once, and that sum a number over the ranks."""


def main() -> None:
    args = parse_arguments()
    console = common.make_console()
    samples = measure(console, args)
    pairs = [(f"{MLXDIST} {script}", f"{MPIRUN} {script}") for script in SCRIPTS]
    result: common.Result = {"ranks": args.ranks, **common.record(samples, pairs)}
    result["added_seconds"] = {
        script: statistics.median(samples[with_mlxdist])
        - statistics.median(samples[bare])
        for script, (with_mlxdist, bare) in zip(SCRIPTS, pairs, strict=True)
    }
    show(console, result)
    common.write_json(args.json, __doc__, result)


def parse_arguments() -> argparse.Namespace:
    parser = common.make_parser(__doc__)
    parser.add_argument("--ranks", type=common.positive, default=2, metavar="N")
    common.add_rounds(parser)
    args = parser.parse_args()
    args.rounds = args.rounds or (5 if args.quick else 15)
    return args


def measure(console: Console, args: argparse.Namespace) -> dict[str, list[float]]:
    cases = [(launcher, script) for script in SCRIPTS for launcher in (MPIRUN, MLXDIST)]
    samples: dict[str, list[float]] = {f"{a} {b}": [] for a, b in cases}
    with (
        tempfile.TemporaryDirectory(prefix="mlxdist-bench-") as folder,
        common.show_progress(console, (args.rounds + 1) * len(cases)) as progress,
    ):
        for script, source in SCRIPTS.items():
            Path(folder, f"{script}.py").write_text(source)
        for number in range(-1, args.rounds):  # the first round warms the caches
            for launcher, script in common.round_order(cases, number):
                path = f"{folder}/{script}.py"
                seconds = timed(command_of(launcher, args.ranks, path))
                if number >= 0:
                    samples[f"{launcher} {script}"].append(seconds)
                progress.advance(f"{launcher} {script}")
    return samples


def command_of(launcher: str, ranks: int, script: str) -> list[str]:
    if launcher == MLXDIST:
        return [sys.executable, "-m", "mlxdist.cli", "run", "-n", str(ranks), script]
    return [*mpirun(ranks), sys.executable, script]


def timed(command: list[str]) -> float:
    """Return the seconds of a command.

    Raises:
        RuntimeError: it failed, with its output.
    """
    environment = {**without_mpi(os.environ), "PYTHONPATH": str(common.ROOT)}
    began = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
    return seconds


def show(console: Console, result: common.Result) -> None:
    rows = [
        [name, f"{each['median']:.3f}", "{:.3f} to {:.3f}".format(*each["quartiles"])]
        for name, each in result["summary"].items()
    ]
    title = f"{result['ranks']} ranks, from the command to its exit"
    common.print_table(console, title, ["command", "s", "quartiles"], rows, LEGEND)
    for script, added in result["added_seconds"].items():
        text = f"mlxdist run adds to the script `{script}`"
        common.print_verdict(console, common.bound_text(text, added, BOUND, "s"))


if __name__ == "__main__":
    main()
