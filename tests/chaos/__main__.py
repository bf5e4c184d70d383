"""Run jobs with random faults for some minutes, and count how they end."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from tests.support import netns

from .chaos_run import ChaosRun, Result
from .job import PATIENCE


def main() -> int:
    options = parse_arguments()
    problem = netns.problem()
    if problem is not None:
        print(f"tests.chaos: {problem}", file=sys.stderr)
        return 2
    run = ChaosRun(options.seed, options.keep, patience=options.patience)
    results: Iterable[Result] = run.run_for(60 * options.minutes)
    if options.job is not None:
        results = map(run.run_job, options.job)
    try:
        for result in results:
            print(result, flush=True)
            if not result.is_good:
                replay = f"--seed {options.seed} --job {result.plan.number}"
                print(f"    python -m tests.chaos {replay}", flush=True)
            if options.report:
                run.write_report(options.report)
    except KeyboardInterrupt:
        print("interrupted")
    print(run.table())
    return int(not all(result.is_good for result in run.results))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--job", type=int, nargs="+", help="only the jobs of these numbers"
    )
    parser.add_argument("--report", type=Path, help="file for all results, as JSON")
    parser.add_argument(
        "--keep", type=Path, help="folder for the files of jobs that went wrong"
    )
    parser.add_argument(
        "--patience",
        type=float,
        default=PATIENCE,
        metavar="SECONDS",
        help="beyond all time-outs, until a job hangs; more on a busy machine "
        "(default: %(default)s)",
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
