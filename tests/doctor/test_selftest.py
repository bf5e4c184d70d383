"""doctor/selftest: the results of `mlxdist test`, from what its jobs report."""

import pytest

from mlxdist.doctor import selftest, subjob
from mlxdist.doctor.subjob import JobResult

CHECKS = [
    "equals one process",
    "sharded equals replicated",
    "a killed rank is noticed",
    "a checkpoint survives it",
]
EQUAL = {"one_process": 0.0, "sharded": 0.0, "identical": True, "device": "cpu"}


def result(code=0, message="", *, killed=(), **report):
    return JobResult(code, message, 1.0, report, killed)


@pytest.fixture
def jobs_end_with(monkeypatch):
    """Let every job of the self-test end with a given result, without starting it."""

    def end_with(job):
        monkeypatch.setattr(subjob, "run", lambda *_args, **_options: job)

    return end_with


@pytest.mark.parametrize(
    ("changes", "passed"),
    [
        ({}, [True, True]),
        ({"one_process": 1e-8}, [True, True]),
        ({"one_process": 1e-3}, [False, True]),
        ({"sharded": 0.1}, [True, False]),
        ({"sharded": float("nan")}, [True, False]),
        ({"identical": False}, [False, False]),
    ],
)
def test_check_equality_passes_within_the_tolerance(changes, passed):
    checks = selftest.check_equality(result(**{**EQUAL, **changes}))
    assert [check.passed for check in checks] == passed


def test_checks_of_a_failed_job_fail_with_its_message():
    checks = selftest.check_equality(result(3, "why", **EQUAL))
    assert [(check.passed, check.message) for check in checks] == [(False, "why")] * 2
    assert not selftest.check_resumed(result(1, "why")).passed
    assert not selftest.check_resumed(result(0, "why")).passed
    assert not selftest.check_resumed(result(0, checkpoint=1.0)).passed
    assert not selftest.check_resumed(result(1, checkpoint=0.0)).passed


@pytest.mark.parametrize(
    ("code", "killed", "passed"),
    [(137, (1,), True), (137, (0, 1), True), (0, (), False), (1, (), False)],
)
def test_check_killed_passes_if_the_outcome_has_the_rank(code, killed, passed):
    job = result(code, "why", killed=killed, saved=True)
    check = selftest.check_killed(job, 1, "rank 1")
    assert check.passed == passed
    assert check.message == "killed rank 1: why"
    unsaved = result(code, "why", killed=killed)
    assert not selftest.check_killed(unsaved, 1, "rank 1").passed


def test_results_of_a_job_that_does_not_start_are_one_failure(jobs_end_with):
    jobs_end_with(result(2, "mlxdist: error: no Open MPI"))
    (check,) = selftest.results(2, ["-n", "2"])
    failure = ("a job starts", False, "mlxdist: error: no Open MPI")
    assert (check.name, check.passed, check.message) == failure


def test_results_of_jobs_that_start_and_fail_are_all_reported(jobs_end_with):
    jobs_end_with(result(1, "rank 1 failed", started=True))
    checks = list(selftest.results(2, ["-n", "2"]))
    assert [check.name for check in checks] == CHECKS
    assert not any(check.passed for check in checks)
    assert all("rank 1 failed" in check.message for check in checks)
