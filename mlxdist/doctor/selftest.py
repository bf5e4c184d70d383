"""The self-test of `mlxdist test`: small jobs with a known result, and their checks."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

from . import subjob
from .reports import SelftestReport
from .subjob import JobResult

_TIMEOUT = 120  # seconds for a job
# Accelerators may fuse elementwise operations differently for different shapes.
_TOLERANCE = 1e-5
STARTS = "a job starts"  # yielded only if none does


class CheckResult(NamedTuple):
    """The result of one check."""

    name: str
    passed: bool
    message: str
    seconds: float


def results(
    ranks: int, options: Sequence[str], host_of_rank: Sequence[str] = ()
) -> Iterator[CheckResult]:
    """Run the jobs and yield each result when it is known.

    If the first job does not start, its failure is the only result.

    Args:
        options: of `mlxdist run`.
        host_of_rank: each rank's host; empty for this machine.
    """
    result = _run(options, "compare")
    if result.code and "started" not in result.report:
        yield CheckResult(STARTS, False, result.message, result.seconds)
        return
    yield from check_equality(result)
    folder = f"{tempfile.gettempdir()}/mlxdist-test-{os.urandom(6).hex()}"
    killed = ranks - 1
    name = f"rank {killed}" + (f" on {host_of_rank[killed]}" if host_of_rank else "")
    yield check_killed(_run(options, "kill", folder), killed, name)
    yield check_resumed(_run(options, "resume", folder))


def _run(options: Sequence[str], *arguments: str) -> JobResult:
    return subjob.run(
        options, "mlxdist.doctor.selftest_job", *arguments, timeout=_TIMEOUT
    )


def check_equality(result: JobResult) -> Iterator[CheckResult]:
    """Check that all strategies train as one process does, and as each other."""
    report = cast(SelftestReport, result.report)
    for name, difference in (
        ("equals one process", report.get("one_process")),
        ("sharded equals replicated", report.get("sharded")),
    ):
        if result.code or difference is None:
            yield CheckResult(name, False, result.message, result.seconds)
            continue
        message = _difference(difference)
        if not report["identical"]:
            message += ", but the ranks differ"
        passed = difference <= _TOLERANCE and report["identical"]
        message += f", on {report['device']}"
        yield CheckResult(name, passed, message, result.seconds)


def check_killed(result: JobResult, killed: int, name: str) -> CheckResult:
    """Check that the launcher reports the killed rank, and a checkpoint was saved."""
    report = cast(SelftestReport, result.report)
    passed = result.code != 0 and killed in result.killed and "saved" in report
    message = f"killed {name}: {result.message}"
    return CheckResult("a killed rank is noticed", passed, message, result.seconds)


def check_resumed(result: JobResult) -> CheckResult:
    """Check that training resumed from the checkpoint ends as if uninterrupted."""
    difference = cast(SelftestReport, result.report).get("checkpoint")
    passed, message = False, result.message
    if difference is not None:
        passed = result.code == 0 and difference <= _TOLERANCE
        message = _difference(difference)
    return CheckResult("a checkpoint survives it", passed, message, result.seconds)


def _difference(value: float) -> str:
    return f"within {value:.0e}" if value else "bit for bit"
