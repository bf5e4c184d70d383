"""Makes mistakes in a copy of the sources, one at a time, and runs the tests on it."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.support import jobs

from .mutation import Mutation, source_of

COPIED = ("mlxdist", "tests", "benchmarks", "launch", "docs")
TIMEOUT = 150.0  # seconds; a run that takes longer hangs, which counts as caught
BASELINE_TIMEOUT = 1800.0
NO_TESTS_COLLECTED = 5  # pytest's exit code
TOKEN = "MLXDIST_TEST_MUTATION"  # variable that marks the processes of a run

BROKEN_IMPORT = Mutation(
    "__init__.py",
    "mpi4py.rc.initialize = False",
    "raise ImportError",
    ("tests/layout/test_buckets.py",),
)


class Result(NamedTuple):
    """What the tests said to a mistake: `detail` is the first test that failed."""

    mutation: Mutation
    is_caught: bool
    detail: str
    seconds: float

    @property
    def is_explained(self) -> bool:
        return self.is_caught or bool(self.mutation.equivalent)

    def __str__(self) -> str:
        word = "caught" if self.is_caught else "SURVIVED"
        text = f"{word:<8} {self.seconds:3.0f} s  {self.mutation}  [{self.detail}]"
        if self.is_caught or not self.mutation.equivalent:
            return text
        return f"{text}\n    equivalent: {self.mutation.equivalent}"


class Run(NamedTuple):
    """One run of pytest. `code` is None where it was killed at its time-out."""

    code: int | None
    output: str

    @property
    def passed(self) -> bool:
        return self.code == 0

    @property
    def detail(self) -> str:
        """The first test that failed; otherwise how the run ended."""
        failed = re.search(r"^(?:FAILED|ERROR) (\S+)", self.output, re.MULTILINE)
        if failed is not None:
            return failed[1]
        if self.passed:
            return "all tests passed"
        return "time-out" if self.code is None else f"exit code {self.code}"


class Sandbox:
    """A copy of the sources, for mistakes.

    Args:
        folder: an empty one.
    """

    def __init__(self, folder: Path):
        self.root = folder / "sources"
        self._sessions = folder / "mpirun"
        self._sessions.mkdir()
        self.root.mkdir()
        ignored = shutil.ignore_patterns("__pycache__")
        for name in COPIED:
            shutil.copytree(jobs.ROOT / name, self.root / name, ignore=ignored)
        for file in jobs.ROOT.glob("*.*"):
            if file.is_file():
                shutil.copy(file, self.root)

    def try_mutation(self, mutation: Mutation) -> Result:
        """Run the mutation's tests on a copy with the mistake."""
        began = time.monotonic()
        original = source_of(mutation, self.root)
        path = self.root / mutation.path
        path.write_text(mutation.mutated(original))
        self._forget_bytecode(path)
        try:
            runs = self.runs(mutation.tests, mutation.ranks, TIMEOUT)
            run = next((run for run in runs if not run.passed), Run(0, ""))
        finally:
            path.write_text(original)
            self._forget_bytecode(path)
        is_caught = not run.passed and run.code != NO_TESTS_COLLECTED
        return Result(mutation, is_caught, run.detail, time.monotonic() - began)

    def runs(
        self, tests: Iterable[str], ranks: Sequence[int], timeout: float
    ) -> Iterable[Run]:
        """Run tests on each number of ranks, or in one process where there is none."""
        return (self.run(tests, n, timeout) for n in ranks or (0,))

    def run(self, tests: Iterable[str], ranks: int, timeout: float) -> Run:
        """Run tests to the first failure, serially where `ranks` is 0."""
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-x",
            "-q",
            "--tb=line",
            "--color=no",
        ]
        command += ["-p", "no:cacheprovider", "-o", "spmd_grace=5"]
        if ranks:
            command = [*jobs.mpirun(ranks, str(self._sessions)), *command, "--with-mpi"]
        command += ["-m", f"{'' if ranks else 'not '}mpi and not long", *tests]
        token = uuid.uuid4().hex
        env = {"PYTHONPATH": str(self.root), TOKEN: token}
        try:
            done = jobs.run(command, env=env, timeout=timeout, cwd=self.root)
            return Run(done.returncode, done.stdout + done.stderr)
        except subprocess.TimeoutExpired as error:
            return Run(None, str(error.stdout))
        finally:
            end_processes(token)

    @staticmethod
    def _forget_bytecode(path: Path) -> None:
        """Two mistakes in one second, of one length, would share their bytecode."""
        for file in path.parent.glob(f"__pycache__/{path.stem}.*"):
            file.unlink()


def end_processes(token: str) -> None:
    """Kill what a run left behind: processes with its token in their environment."""
    for file in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if f"{TOKEN}={token}".encode() in file.read_bytes().split(b"\0"):
                os.kill(int(file.parent.name), signal.SIGKILL)


def baseline(sandbox: Sandbox, mutations: Sequence[Mutation]) -> list[str]:
    """Return what fails without any mistake: such tests would prove nothing."""
    kinds = {n for m in mutations for n in m.ranks or (0,)}
    failures = []
    for ranks in sorted(kinds):
        chosen = [m.tests for m in mutations if ranks in (m.ranks or (0,))]
        tests = whole_files(itertools.chain(*chosen))
        run = sandbox.run(tests, ranks, BASELINE_TIMEOUT)
        if not run.passed:
            where = f"on {ranks} ranks" if ranks else "serially"
            failures.append(f"{run.detail} {where}:\n{run.output[-4000:]}")
    return failures


def whole_files(tests: Iterable[str]) -> list[str]:
    """Return the tests, without those of a file that is there as a whole."""
    chosen = set(tests)
    return sorted(t for t in chosen if "::" not in t or t.split("::")[0] not in chosen)


def check_runner(sandbox: Sandbox) -> None:
    """Raise RuntimeError where the tests do not import the copy of the package."""
    result = sandbox.try_mutation(BROKEN_IMPORT)
    empty = sandbox.try_mutation(BROKEN_IMPORT._replace(new=BROKEN_IMPORT.old))
    if not result.is_caught or empty.is_caught:
        raise RuntimeError(f"the runner does not test its copy:\n{result}\n{empty}")
