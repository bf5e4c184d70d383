"""Runs all checks and tests: ruff, mypy, import-linter, and pytest on 1 to 4 ranks.

The serial tests run first, in up to four processes. Then come the tests that are
marked mpi: on 1 rank in a process for each core, and under mpirun on 2, 3 and 4 ranks.
A test of many cases runs on 2, 3 and 4 ranks with a third of its cases each. One of few
cases runs on 2 ranks, and each case on 3 or on 4. With --long all run on all. Goes on
after a failure. A run that ends without a report, as one does when a test exceeds its
time, is repeated once without the test in which it ended. The last line counts the
tests of all runs; a check that fails, or a run that ends without a report, counts as
one failed test. Above it stand the ends of the failures once more, for who has the end
of the output only. The exit code is 1 if anything failed.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mlxdist.launcher.cores import usable_cores
from mlxdist.launcher.environment import PREFIX, without_mpi

from .jobs import ROOT, mpirun

BIN = Path(sys.executable).parent
SOURCES = ("mlxdist", "launch", "tests", "benchmarks", "docs/figures", "docs/hooks.py")
NO_TESTS_COLLECTED = 5  # pytest's exit code
THREAD_LIMITS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
# A path: conftest.py keeps a test's name there. Beside it, hangs.py leaves its reports.
RUNNING_TEST = "MLXDIST_RUNNING_TEST"
MAX_FAILURE, MAX_FAILURES = 12, 120  # lines repeated of one failure, and of all


class Stage(NamedTuple):
    """The result of one check or one run of pytest; `failed` counts at least 1."""

    name: str
    passed: int
    failed: int
    seconds: float
    detail: str
    failures: Sequence[str] = ()  # the ends of their reports

    def __str__(self) -> str:
        result = "FAILED" if self.failed else "ok"
        return f"{self.name:<22} {result:<6} {self.seconds:4.0f} s   {self.detail}"


class Suite:
    """Runs stages one after the other and keeps their results.

    Args:
        pytest_arguments: for every run of pytest.
        folder: for reports, and for the files of mpirun.
    """

    def __init__(self, pytest_arguments: Sequence[str], folder: Path):
        self.stages: list[Stage] = []
        self._arguments, self._folder = list(pytest_arguments), folder
        self._color = "yes" if sys.stdout.isatty() else "no"
        # As in a new shell, also where this runs inside a job of mpirun.
        self._environment = {
            name: value
            for name, value in without_mpi(os.environ).items()
            if not name.startswith(PREFIX)
        }
        # Python compiles each module once, and not in every rank of every job.
        self._environment["PYTHONPYCACHEPREFIX"] = str(BIN.parent / "pycache")
        self._environment.pop("PYTHONDONTWRITEBYTECODE", None)

    def check(self, name: str, *command: str) -> None:
        """Run a command that passes if its exit code is 0."""
        code, seconds = self._run(name, command, {})
        detail = exit_text(code).removeprefix(", ")
        self._add(Stage(name, 0, int(code != 0), seconds, detail))

    def pytest(
        self,
        name: str,
        *arguments: str,
        launcher: Sequence[str] = (),
        variables: Mapping[str, str] | None = None,
    ) -> None:
        """Run pytest, under a launcher such as mpirun, and count its tests.

        If it ends without a report while a test runs, a second stage has the others.
        """
        pytest = [*launcher, sys.executable, "-m", "pytest", *arguments, "-q"]
        unfinished = self._pytest(name, pytest, variables or {})
        if unfinished:
            pytest += ["--deselect", unfinished]
            self._pytest(f"{name} again", pytest, variables or {})

    def _pytest(
        self, name: str, pytest: Sequence[str], variables: Mapping[str, str]
    ) -> str:
        """Run pytest and add its stage; return the test in which it ended, or ""."""
        report, running = (self._folder / f"{name}.{end}" for end in ("xml", "running"))
        hangs = running.with_suffix(".hangs")
        command = [*pytest, f"--color={self._color}", f"--junitxml={report}"]
        variables = {**variables, RUNNING_TEST: str(running)}
        code, seconds = self._run(name, [*command, *self._arguments], variables)
        if code == NO_TESTS_COLLECTED and self._arguments:
            code = 0  # the user's selection has no tests of this kind
        unfinished = running.read_text() if running.exists() else ""
        stage = stage_of(name, report, code, seconds, unfinished)
        texts = [hangs.read_text()] if hangs.exists() else []
        self._add(stage._replace(failures=[*texts, *failures(report)]))
        return unfinished

    def serial_tests(self, marks: str) -> None:
        """Run the tests that are not marked mpi, side by side, and then those alone.

        A process takes consecutive tests, so that it makes the fixtures of few files. A
        test that ends its process is a failure, and another process goes on.
        """
        # Jobs wait for most of their time: for mpirun, for a timeout, for what never
        # comes. They have up to 4 ranks: too many at a time would wait for one another.
        # Many of the long tests use all cores by themselves.
        spread = over_processes(min(2 * usable_cores(), 4)) if marks else ()
        self.pytest("serial tests", "-m", f"not mpi and not alone{marks}", *spread)
        self.pytest("tests alone", "-m", f"alone and not mpi{marks}")

    def mpi_tests(self, ranks: int, marks: str, *arguments: str) -> None:
        """Run the tests that are marked mpi; on 1 rank in a process for each core."""
        options = ["--with-mpi", "-m", f"mpi{marks}", "-p", "no:cacheprovider"]
        launcher, threads = mpirun(ranks, str(self._folder)), usable_cores() // ranks
        if ranks == 1 and (spread := over_processes(usable_cores())):
            options += spread  # each process is a world of one rank
            launcher, threads = [], 1
        name = f"tests on {ranks} rank{'s' * (ranks > 1)}"
        limits = dict.fromkeys(THREAD_LIMITS, str(max(1, threads)))
        self.pytest(name, *options, *arguments, launcher=launcher, variables=limits)

    def _run(
        self, name: str, command: Sequence[str], variables: Mapping[str, str]
    ) -> tuple[int, float]:
        """Return the exit code and the seconds of a command."""
        print(f"\n== {name}: {' '.join(command)}", flush=True)
        began = time.monotonic()
        environment = {**self._environment, **variables}
        with subprocess.Popen(command, cwd=ROOT, env=environment) as process:
            try:
                code = process.wait()
            except BaseException:
                process.terminate()  # mpirun ends its ranks
                raise
        return code, time.monotonic() - began

    def _add(self, stage: Stage) -> None:
        print(f"\n== {stage}", flush=True)
        self.stages.append(stage)


def over_processes(processes: int) -> tuple[str, ...]:
    """Return pytest's options that spread tests over some processes."""
    return ("-n", str(processes), "--dist", "worksteal") if processes > 1 else ()


def stage_of(
    name: str, report: Path, code: int, seconds: float, unfinished: str = ""
) -> Stage:
    """Return the result of a run of pytest, from its JUnit report and its exit code.

    Args:
        unfinished: the test that was running when pytest ended, "" for none.
    """
    try:
        passed, failed, skipped = counts(report)
    except (OSError, ElementTree.ParseError):
        detail = f"ended without a report{exit_text(code)}"
        detail += f", in {unfinished}" if unfinished else ""
        return Stage(name, 0, 1, seconds, detail)
    if code and not failed:
        failed = 1  # pytest broke off, or failed outside of its tests
    detail = f"{passed} passed, {failed} failed, {skipped} skipped{exit_text(code)}"
    return Stage(name, passed, failed, seconds, detail)


def exit_text(code: int) -> str:
    """Return an exit code for the summary; "" for 0 and for 1, which a failure has."""
    if code < 0:
        return f", ended by {signal.Signals(-code).name}"
    return f", exit code {code}" if code > 1 else ""


def counts(report: Path) -> tuple[int, int, int]:
    """Return how many tests of a JUnit report passed, failed and were skipped.

    Raises:
        OSError, ElementTree.ParseError: there is no report, or only a part of it.
    """

    def total(name: str) -> int:
        return sum(int(suite.get(name, 0)) for suite in suites)

    suites = list(ElementTree.parse(report).getroot().iter("testsuite"))
    failed, skipped = total("failures") + total("errors"), total("skipped")
    return total("tests") - failed - skipped, failed, skipped


def failures(report: Path) -> list[str]:
    """Return the name and the last lines of each failure of a JUnit report."""
    try:
        cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    except (OSError, ElementTree.ParseError):
        return []
    texts = []
    for case in cases:
        for failure in (*case.iterfind("failure"), *case.iterfind("error")):
            lines = (failure.text or failure.get("message", "")).splitlines()
            name = f"{case.get('classname')}::{case.get('name')}"
            texts.append("\n".join([name, *lines[-MAX_FAILURE:]]))
    return texts


def repeated(stages: Sequence[Stage]) -> list[str]:
    """Return the lines that repeat the failures of all stages, at most MAX_FAILURES."""
    lines = [
        line
        for stage in stages
        for text in stage.failures
        for line in f"\n== {stage.name}: {text}".splitlines()
    ]
    left_out = len(lines) - MAX_FAILURES
    return lines[:MAX_FAILURES] + [f"... and {left_out} lines"] * (left_out > 0)


def main(arguments: Sequence[str]) -> int:
    options = parse_arguments(arguments)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mlxdist-test.") as folder:
        suite = Suite(options.pytest_arguments, Path(folder))
        suite.check("ruff check", f"{BIN}/ruff", "check", *SOURCES)
        suite.check("ruff format", f"{BIN}/ruff", "format", "--check", *SOURCES)
        suite.check("mypy", f"{BIN}/mypy")
        suite.check("import-linter", f"{BIN}/lint-imports", "--no-logo")
        marks = "" if options.long else " and not long"
        suite.serial_tests(marks)
        for ranks in (2,) if options.fast else (1, 2, 3, 4):
            all_cases = ranks == 1 or options.fast or options.long
            cases = () if all_cases else ("--cases-on", str(ranks))
            suite.mpi_tests(ranks, marks, *cases)
    seconds = time.monotonic() - began
    print(*repeated(suite.stages), sep="\n")
    print(f"\n== summary, {seconds:.0f} s on {usable_cores()} cores")
    print(*suite.stages, sep="\n")
    passed = sum(stage.passed for stage in suite.stages)
    failed = sum(stage.failed for stage in suite.stages)
    print(f"\n{passed} passed, {failed} failed")
    return int(failed > 0)


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="launch/test",
        usage="launch/test [--fast] [--long] [-- ARGUMENT ...]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--fast", action="store_true", help="under mpirun on 2 ranks only"
    )
    parser.add_argument(
        "--long", action="store_true", help="the tests marked long as well"
    )
    parser.add_argument(
        "pytest_arguments",
        nargs="*",
        metavar="-- ARGUMENT",
        help="arguments of every run of pytest, such as: -- -k sampler -x",
    )
    options, rest = list(arguments), []
    if "--" in options:
        index = options.index("--")
        options, rest = options[:index], options[index + 1 :]
    parsed = parser.parse_args(options)
    if parsed.pytest_arguments:
        parser.error(f"unknown argument {parsed.pytest_arguments[0]}")
    parsed.pytest_arguments = rest
    return parsed


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
