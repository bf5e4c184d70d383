"""The plugin spmd.py, in real mpirun jobs over small generated test files."""

import re
import shutil
import sys
import time

import pytest

from tests.support import jobs

# Seconds for a job that would never end without the plugin, on busy cores.
LIMIT = 80

HEAD = """
import ctypes, time
import pytest
pytestmark = pytest.mark.mpi

def meet(world):
    # A collective, whose result is right only if all ranks are in the same test.
    return world.mean(world.rank + {n}) == (world.size - 1) / 2 + {n}

"""


class Harness:
    """Runs a generated test file on n ranks, with this suite's conftest.py."""

    def __init__(self, folder):
        self.folder = folder
        shutil.copy(jobs.ROOT / "tests" / "conftest.py", folder / "conftest.py")

    def run(self, n, source, *options, timeout=100):
        (self.folder / "test_run.py").write_text(HEAD.replace("{n}", "0") + source)
        command = [*jobs.mpirun(n), sys.executable, "-m", "pytest", "--with-mpi"]
        command += ["-c", str(jobs.ROOT / "pyproject.toml"), "--color=no", "-v"]
        command += ["--rootdir", str(self.folder), "-p", "no:cacheprovider"]
        command += [*options, str(self.folder)]
        process = jobs.start(command, cwd=self.folder)
        began = time.monotonic()
        try:
            self.out, self.err = process.communicate(timeout=timeout)
            self.seconds = time.monotonic() - began
            ended = jobs.wait_until(lambda: not jobs.processes(process.pid))
        finally:
            jobs.end_session(process.pid)
            process.communicate()
        self.rc = process.returncode
        self.text = f"exit code {self.rc}\n{self.out}\n{self.err}"
        assert ended, self.text
        return self

    def outcome(self, test):
        """Return rank 0's report on a test; the other ranks must print none."""
        reports = re.findall(rf"::{test} (PASSED|FAILED|SKIPPED|XFAIL|ERROR)", self.out)
        assert len(reports) == 1, self.text
        return reports[0]


@pytest.fixture
def harness(tmp_path):
    return Harness(tmp_path)


def test_spmd_other_outcome_on_one_rank_fails_on_all_and_the_next_test_runs(harness):
    result = harness.run(
        3,
        """
def test_before(world):
    assert meet(world)

def test_fails_on_1(world):
    if world.rank == 1:
        raise ValueError("only here")

def test_after(world):
    assert meet(world)

def test_setup_fails_on_2(broken):
    pass

@pytest.fixture
def broken(world):
    if world.rank == 2:
        raise OSError("no fixture")

def test_skips_on_1(world):
    if world.rank == 1:
        pytest.skip("not here")

def test_expected_on_0(world, request):
    if world.rank == 0:
        request.applymarker(pytest.mark.xfail(reason="here"))
        raise ValueError

def test_last(world):
    assert meet(world)
""",
    )
    assert result.outcome("test_before") == "PASSED"
    assert result.outcome("test_fails_on_1") == "FAILED"
    assert result.outcome("test_after") == "PASSED"
    assert result.outcome("test_setup_fails_on_2") == "FAILED"
    assert result.outcome("test_skips_on_1") == "FAILED"
    assert result.outcome("test_expected_on_0") == "FAILED"
    assert result.outcome("test_last") == "PASSED"
    assert "passed on rank 0, skipped on rank 1, passed on rank 2" in result.out
    assert "xfailed on rank 0, passed on rank 1, passed on rank 2" in result.out
    assert result.out.count("failed on rank 1: ValueError: only here") == 2, result.text
    # Rank 0 prints the traceback of rank 1.
    assert 'raise ValueError("only here")' in result.out
    assert "failed on rank 2: OSError: no fixture" in result.out
    assert result.out.count("4 failed, 3 passed") == 1, result.text
    assert result.rc == 1, result.text


def test_spmd_success_has_exit_code_0_and_one_report_file(harness):
    report = harness.folder / "report.xml"
    result = harness.run(
        2,
        """
def test_one(world, shared_folder):
    (shared_folder / str(world.rank)).touch()
    assert meet(world)
    assert len(list(shared_folder.iterdir())) == world.size

def test_rank_0_alone_writes_the_report(world, request):
    assert (request.config.option.xmlpath is None) == (world.rank > 0)

@pytest.mark.mpi(min_size=5)
def test_too_few():
    raise AssertionError

@pytest.mark.xfail(reason="known")
def test_known(world):
    assert not meet(world)
""",
        f"--junitxml={report}",
    )
    assert result.rc == 0, result.text
    assert result.out.count("2 passed, 1 skipped, 1 xfailed") == 1, result.text
    assert 'tests="4"' in report.read_text()


def test_spmd_on_one_rank_reports_as_pytest(harness):
    result = harness.run(
        1,
        """
def test_one(world):
    assert world.size == 1

def test_two(world):
    assert world.size == 2
""",
    )
    assert result.outcome("test_one") == "PASSED"
    assert result.outcome("test_two") == "FAILED"
    assert result.rc == 1, result.text


def test_spmd_hanging_rank_ends_the_job_and_prints_what_each_rank_does(harness):
    result = harness.run(
        3,
        """
def test_hangs(world):
    if world.rank == 1:
        print("last words")
        while True:
            time.sleep(0.1)
    if world.rank == 2:
        world.barrier()
""",
        "-o",
        "timeout=2",
    )
    assert result.rc == 1, result.text
    assert result.seconds < LIMIT, result.text
    assert "rank 1: test_run.py::test_hangs did not end within 2 s" in result.err
    assert "It has printed:\nlast words" in result.err
    (report,) = re.findall(r"\nrank 0:\n.*?\n---", result.err, flags=re.DOTALL)
    *_, rank_0, rank_1, rank_2 = re.split(r"\nrank \d:\n", report)
    assert " _exchange" in rank_0  # it has finished the test
    assert "test_hangs" not in rank_0
    assert re.match(r"  \S+test_run.py:\d+ test_hangs\n", rank_1)
    assert re.match(r"  mlxdist/comm/\S+ .*test_hangs\n", rank_2, flags=re.DOTALL)
    assert len(report.splitlines()) < 40, report


@pytest.mark.long
def test_spmd_rank_that_holds_the_interpreter_lock_ends_the_job(harness):
    result = harness.run(
        2,
        """
@pytest.mark.timeout(1)
def test_hangs():
    ctypes.PyDLL(None).sleep(600)  # PyDLL keeps Python's lock
""",
        "-o",
        "spmd_slack=1",
    )
    assert result.rc == 1, result.text
    assert result.seconds < LIMIT, result.text
    assert " test_hangs" in result.err


def test_spmd_failure_with_others_in_a_collective_is_printed_and_ends_the_job(harness):
    result = harness.run(
        2,
        """
def test_diverges(world):
    if world.rank == 1:
        raise ValueError("before the collective")
    world.barrier()
""",
        "-o",
        "spmd_grace=1",
    )
    assert result.rc == 1, result.text
    assert result.seconds < LIMIT, result.text
    assert (
        "rank 1: test_run.py::test_diverges failed here, and rank 0 did not"
        in result.err
    )
    assert "ValueError: before the collective" in result.err
    assert re.search(
        r"\nrank 0:\n  mlxdist/\S+ .*test_diverges\n", result.err, re.DOTALL
    )


def test_spmd_ranks_that_collect_different_tests_run_none(harness):
    result = harness.run(
        2,
        """
import mlxdist
if mlxdist.init().rank == 1:
    def test_extra():
        pass

def test_common():
    pass
""",
    )
    assert result.rc == 2, result.text
    assert "the ranks collected different tests" in result.out
    assert (
        "rank 1: 2 tests; not on all ranks: ['test_run.py::test_extra']" in result.out
    )
    assert "PASSED" not in result.out


def test_spmd_import_error_on_one_rank_is_printed(harness):
    result = harness.run(
        2,
        """
import mlxdist
if mlxdist.init().rank == 1:
    import no_such_module

def test_common():
    pass
""",
    )
    assert result.rc == 2, result.text
    assert "rank 1 could not collect" in result.out
    assert "No module named 'no_such_module'" in result.out
    assert "PASSED" not in result.out


def test_spmd_rank_that_exits_ends_the_job(harness):
    result = harness.run(
        2,
        """
import os
def test_dies(world):
    if world.rank == 1:
        os._exit(0)
    world.barrier()
""",
        "-o",
        "timeout=2",
    )
    assert result.rc == 1, result.text
    assert result.seconds < LIMIT, result.text
