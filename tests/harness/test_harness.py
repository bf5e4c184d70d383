"""The harness of spmd.py, on real mpirun jobs over small test files made here."""

import re
import shutil
import sys
import time

import pytest

from tests.support import jobs

# Seconds for a job that would else take for ever, on cores that are busy.
BOUND = 40

HEAD = """
import ctypes, time
import pytest
pytestmark = pytest.mark.mpi

def met(world):
    # The mean of the ranks, which only comes out right if all ranks are in this test.
    return world.mean(world.rank + {n}) == (world.size - 1) / 2 + {n}

"""


class Harness:
    """Runs a test file on n ranks as launch/test does, with the real conftest.py."""

    def __init__(self, folder):
        self.folder = folder
        shutil.copy(jobs.ROOT / "tests" / "conftest.py", folder / "conftest.py")

    def run(self, n, source, *options, timeout=90):
        (self.folder / "test_made.py").write_text(HEAD.replace("{n}", "0") + source)
        command = [*jobs.mpirun(n), sys.executable, "-m", "pytest", "--with-mpi"]
        command += ["-c", str(jobs.ROOT / "pyproject.toml"), "--color=no", "-v"]
        command += ["--rootdir", str(self.folder), "-p", "no:cacheprovider"]
        command += [*options, str(self.folder)]
        process = jobs.start(command, cwd=self.folder)
        begun = time.monotonic()
        try:
            self.out, self.err = process.communicate(timeout=timeout)
            self.seconds = time.monotonic() - begun
            self.left = jobs.processes(process.pid)
        finally:
            jobs.end_session(process.pid)
            process.communicate()
        self.rc = process.returncode
        self.text = f"exit code {self.rc}\n{self.out}\n{self.err}"
        assert not self.left, self.text
        return self

    def outcome(self, test):
        """What rank 0 reported for a test: checks that no other rank printed one."""
        found = re.findall(rf"::{test} (PASSED|FAILED|SKIPPED|XFAIL|ERROR)", self.out)
        assert len(found) == 1, self.text
        return found[0]


@pytest.fixture
def harness(tmp_path):
    return Harness(tmp_path)


def test_a_failure_on_one_rank_is_one_on_all_and_the_next_test_runs(harness):
    ran = harness.run(
        3,
        """
def test_before(world):
    assert met(world)

def test_fails_on_1(world):
    if world.rank == 1:
        raise ValueError("only here")

def test_after(world):
    assert met(world)

def test_setup_fails_on_2(broken):
    pass

@pytest.fixture
def broken(world):
    if world.rank == 2:
        raise OSError("no fixture")

def test_last(world):
    assert met(world)
""",
    )
    assert ran.outcome("test_before") == "PASSED"
    assert ran.outcome("test_fails_on_1") == "FAILED"
    assert ran.outcome("test_after") == "PASSED"
    assert ran.outcome("test_setup_fails_on_2") == "FAILED"
    assert ran.outcome("test_last") == "PASSED"
    assert ran.out.count("failed on rank 1: ValueError: only here") == 2, ran.text
    assert 'raise ValueError("only here")' in ran.out  # rank 1's traceback, on rank 0
    assert "failed on rank 2: OSError: no fixture" in ran.out
    assert ran.out.count("2 failed, 3 passed") == 1, ran.text
    assert ran.rc == 1, ran.text


def test_success_is_exit_code_0_and_one_report(harness):
    report = harness.folder / "report.xml"
    ran = harness.run(
        2,
        """
def test_one(world, shared_folder):
    (shared_folder / str(world.rank)).touch()
    assert met(world)
    assert len(list(shared_folder.iterdir())) == world.size

def test_rank_0_alone_writes_the_report(world, request):
    assert (request.config.option.xmlpath is None) == (world.rank > 0)

@pytest.mark.mpi(min_size=5)
def test_too_few():
    raise AssertionError

@pytest.mark.xfail(reason="known")
def test_known(world):
    assert not met(world)
""",
        f"--junitxml={report}",
    )
    assert ran.rc == 0, ran.text
    assert ran.out.count("2 passed, 1 skipped, 1 xfailed") == 1, ran.text
    assert 'tests="4"' in report.read_text()


def test_works_on_one_rank(harness):
    ran = harness.run(
        1,
        """
def test_one(world):
    assert world.size == 1

def test_two(world):
    assert world.size == 2
""",
    )
    assert ran.outcome("test_one") == "PASSED"
    assert ran.outcome("test_two") == "FAILED"
    assert ran.rc == 1, ran.text


def test_a_skip_on_one_rank_is_an_error(harness):
    ran = harness.run(
        2,
        """
def test_skips_on_1(world):
    if world.rank == 1:
        pytest.skip("not here")

def test_expected_on_0(world, request):
    if world.rank == 0:
        request.applymarker(pytest.mark.xfail(reason="here"))
        raise ValueError

def test_after(world):
    assert met(world)
""",
    )
    assert ran.outcome("test_skips_on_1") == "FAILED"
    assert "passed on rank 0, skipped on rank 1" in ran.out
    assert ran.outcome("test_expected_on_0") == "FAILED"
    assert "xfailed on rank 0, passed on rank 1" in ran.out
    assert ran.outcome("test_after") == "PASSED"
    assert ran.rc == 1, ran.text


@pytest.mark.parametrize(
    ("stuck", "rank"),
    [
        ("while True: time.sleep(0.1)", 0),
        pytest.param("while True: time.sleep(0.1)", 1, marks=pytest.mark.long),
        ("world.barrier()", 1),
    ],
)
def test_a_rank_that_hangs_ends_the_job(harness, stuck, rank):
    ran = harness.run(
        2,
        f"""
import mlxdist

# The other ranks' time is up first: they must wait and leave the word to this one.
@pytest.mark.timeout(1 + (mlxdist.init().rank == {rank}))
def test_hangs(world):
    if world.rank == {rank}:
        {stuck}
""",
    )
    assert ran.rc != 0, ran.text
    assert ran.seconds < BOUND, ran.text
    assert "Timeout" in ran.out + ran.err  # pytest-timeout's, with the stacks,
    assert "in test_hangs" in ran.out + ran.err  # of the rank that is stuck
    assert f"rank {rank}:" in ran.err or rank == 0


def test_a_rank_that_holds_the_interpreter_ends_the_job(harness):
    ran = harness.run(
        2,
        """
@pytest.mark.timeout(1)
def test_hangs():
    ctypes.PyDLL(None).sleep(60)  # PyDLL keeps Python's lock
""",
        "-o",
        "spmd_slack=1",
    )
    assert ran.rc != 0, ran.text
    assert ran.seconds < BOUND, ran.text
    assert "in test_hangs" in ran.err


def test_a_failure_that_leaves_others_waiting_ends_the_job_and_is_told(harness):
    ran = harness.run(
        2,
        """
def test_parts(world):
    if world.rank == 1:
        raise ValueError("before the collective")
    world.barrier()
""",
        "-o",
        "spmd_grace=1",
    )
    assert ran.rc != 0, ran.text
    assert ran.seconds < BOUND, ran.text
    assert "rank 1: test_made.py::test_parts failed here, and rank 0 did not" in ran.err
    assert "ValueError: before the collective" in ran.err


def test_ranks_that_collect_different_tests_refuse_to_run(harness):
    ran = harness.run(
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
    assert ran.rc == 2, ran.text
    assert "the ranks collected different tests" in ran.out
    assert "rank 1: 2 tests; not on all ranks: ['test_made.py::test_extra']" in ran.out
    assert "PASSED" not in ran.out


def test_a_file_that_one_rank_cannot_import_is_told(harness):
    ran = harness.run(
        2,
        """
import mlxdist
if mlxdist.init().rank == 1:
    import no_such_module

def test_common():
    pass
""",
    )
    assert ran.rc == 2, ran.text
    assert "rank 1 could not collect" in ran.out
    assert "No module named 'no_such_module'" in ran.out
    assert "PASSED" not in ran.out


def test_a_rank_that_dies_ends_the_job(harness):
    ran = harness.run(
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
    assert ran.rc != 0, ran.text
    assert ran.seconds < BOUND, ran.text
