"""What does `mlxdist run` add to the time that a bare mpirun takes?

    mlxdist bench launch --json benchmarks/results/launch.json

Both start the same script on the same ranks of this machine, in turns, from nothing to
their exit: one that ends at once (`nothing`), which shows the launcher alone, and one
that joins MPI with mlxdist, adds up a number and ends (`sum`). The difference of
medians is to be under 0.3 s. Each pair's order changes from round to round.
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
from typing import Any

import common
from common.progress import Progress

from mlxdist.launcher import openmpi
from mlxdist.launcher.environment import without_mpi

SCRIPTS = {
    "nothing": "",
    "sum": "import mlxdist\nworld = mlxdist.init()\nassert world.mean(1.0) == 1\n",
}
BOUND = 0.3  # seconds


def main() -> None:
    args = parse_arguments()
    out = common.console()
    names = [(script, how) for script in SCRIPTS for how in ("mpirun", "mlxdist run")]
    samples: dict[str, list[float]] = {f"{how} {script}": [] for script, how in names}
    with tempfile.TemporaryDirectory(prefix="mlxdist-bench-") as folder:
        for script, text in SCRIPTS.items():
            Path(folder, f"{script}.py").write_text(text)
        with Progress(out, args.rounds * len(names)) as progress:
            for number in range(-1, args.rounds):  # the first one warms the caches
                for script, how in common.order_of(names, max(0, number)):
                    took = timed(command_of(how, args.ranks, f"{folder}/{script}.py"))
                    if number >= 0:
                        samples[f"{how} {script}"].append(took)
                        progress.advance(f"{how} {script}")
    pairs = [(f"mlxdist run {script}", f"mpirun {script}") for script in SCRIPTS]
    result: dict[str, Any] = {"ranks": args.ranks, **common.record(samples, pairs)}
    result["added_seconds"] = {
        script: statistics.median(samples[f"mlxdist run {script}"])
        - statistics.median(samples[f"mpirun {script}"])
        for script in SCRIPTS
    }
    show(out, result)
    if args.json:
        common.write_json(args.json, __doc__.splitlines()[0], result)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=common.positive, default=2, metavar="N")
    parser.add_argument("--rounds", type=common.positive, help="how often each is run")
    common.add_options(parser)
    args = parser.parse_args()
    args.rounds = args.rounds or (5 if args.quick else 15)
    return args


def command_of(how: str, ranks: int, script: str) -> list[str]:
    if how == "mlxdist run":
        return [sys.executable, "-m", "mlxdist.cli", "run", "-n", str(ranks), script]
    command = [openmpi.find_mpirun(), "-n", str(ranks), "--host", f"localhost:{ranks}"]
    command += ["--bind-to", "none", "--stdin", "none"]
    command += ["--allow-run-as-root"] * (os.geteuid() == 0)
    return [*command, sys.executable, script]


def timed(command: list[str]) -> float:
    environment = {**without_mpi(os.environ), "PYTHONPATH": str(common.ROOT)}
    began = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    took = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
    return took


def show(out: Any, result: dict[str, Any]) -> None:
    rows = [
        [what, f"{each['median']:.3f}", "{:.3f} to {:.3f}".format(*each["quartiles"])]
        for what, each in result["summary"].items()
    ]
    title = f"{result['ranks']} ranks, from the command to its exit"
    common.print_table(out, title, ["what", "s", "quartiles"], rows)
    for script, added in result["added_seconds"].items():
        out.print(f"mlxdist run adds {added:.3f} s to {script} (bound {BOUND} s)")


if __name__ == "__main__":
    main()
