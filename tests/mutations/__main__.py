"""Run the mutations, and print which ones the suite catches.

The exit code is 0 if at least 90% are caught and each of the others is explained as
equivalent, 1 otherwise, and 2 if a test fails without any mutation.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from .mutation import all_mutations, check_code, source_of
from .runner import Result, Sandbox, baseline, check_runner

WANTED = 0.9  # the part of the mutations that must be caught


def main(arguments: Sequence[str]) -> int:
    options = parse_arguments(arguments)
    mutations = all_mutations(options.only)
    if not mutations:
        print(f"no mutation has one of {options.only} in its list, file or lines")
        return 2
    for mutation in mutations:
        check_code(mutation, source_of(mutation))
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="mlxdist-mutations-") as folder:
        sandbox = Sandbox(Path(folder))
        check_runner(sandbox)
        if not options.no_baseline and (failures := baseline(sandbox, mutations)):
            print("these tests fail without any mutation:", *failures, sep="\n")
            return 2
        results = []
        for mutation in mutations:
            results.append(sandbox.try_mutation(mutation))
            print(results[-1], flush=True)
    if options.report:
        write_report(options.report, results)
    print(summary(results))
    return int(not is_good(results))


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.mutations",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--only",
        nargs="+",
        default=[""],
        metavar="TEXT",
        help="mutations with such a text in the name of their list or file, or lines",
    )
    parser.add_argument(
        "--no-baseline",
        action="store_true",
        help="do not run the tests without a mutation first",
    )
    parser.add_argument(
        "--report", type=Path, metavar="FILE", help="write JSON to FILE"
    )
    return parser.parse_args(arguments)


def write_report(path: Path, results: Sequence[Result]) -> None:
    entries = [
        {
            **result.mutation._asdict(),
            "caught": result.is_caught,
            "detail": result.detail,
            "seconds": round(result.seconds, 1),
        }
        for result in results
    ]
    path.write_text(json.dumps(entries, indent=1))


def summary(results: Sequence[Result]) -> str:
    caught = sum(result.is_caught for result in results)
    explained = sum(result.is_explained for result in results) - caught
    return (
        f"\n{len(results)} mutations: {caught} caught ({caught / len(results):.1%}), "
        f"{explained} explained as equivalent, "
        f"{len(results) - caught - explained} survived without an explanation"
    )


def is_good(results: Sequence[Result]) -> bool:
    """Whether enough is caught, and the rest explained."""
    caught = sum(result.is_caught for result in results)
    return caught >= WANTED * len(results) and all(r.is_explained for r in results)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
