"""Outcomes of a test on the ranks of a run, combined into one. Used by spmd.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest

MAX_TEXT = 20_000  # characters of a traceback that are sent to rank 0


@dataclass(frozen=True)
class Outcome:
    """Result of one test on one rank.

    Attributes:
        test: its node id.
        result: "passed", "failed", "skipped", "xfailed" or "xpassed".
        text: traceback or reason.
    """

    test: str
    result: str
    text: str


def outcome_of(test: str, reports: Sequence[pytest.TestReport]) -> Outcome:
    """Return the outcome of a test from its reports on set-up, call and teardown."""
    for report in reports:
        if report.failed:
            phase = "" if report.when == "call" else f"in its {report.when}:\n"
            return Outcome(test, "failed", phase + report.longreprtext[-MAX_TEXT:])
    for report in reports:
        if hasattr(report, "wasxfail"):
            result = "xfailed" if report.skipped else "xpassed"
            return Outcome(test, result, report.wasxfail)
        if report.skipped:
            assert isinstance(report.longrepr, tuple)
            return Outcome(test, "skipped", str(report.longrepr[-1]))
    return Outcome(test, "passed", "")


def combine(
    reports: Sequence[pytest.TestReport], outcomes: Sequence[Outcome], rank: int
) -> None:
    """Change this rank's reports to the outcome of the test on all ranks."""
    results = [outcome.result for outcome in outcomes]
    if len(set(results)) == 1 and results[0] != "failed":
        return
    failed = [r for r, result in enumerate(results) if result == "failed"]
    others = {r: outcomes[r].text for r in failed if r != rank}
    if rank in failed:
        report = next(report for report in reports if report.failed)
        report.sections += [(f"rank {r}", text) for r, text in others.items()]
        return
    report = next((report for report in reports if report.when == "call"), reports[0])
    report.outcome = "failed"
    if hasattr(report, "wasxfail"):
        del report.wasxfail
    if failed:
        summary = error_line(others[failed[0]])
        texts = "\n\n".join(f"rank {r}:\n{text}" for r, text in others.items())
        report.longrepr = f"failed on {ranks_text(failed)}: {summary}\n\n{texts}"
    else:
        each = ", ".join(f"{result} on rank {r}" for r, result in enumerate(results))
        report.longrepr = f"a test must have one outcome on all ranks, but it {each}"


def error_line(text: str) -> str:
    """Return the line of pytest's traceback that has the error's message."""
    errors = [line[1:].strip() for line in text.splitlines() if line.startswith("E ")]
    return errors[0] if errors else text.strip().splitlines()[-1]


def ranks_text(ranks: Sequence[int]) -> str:
    """Return `rank 3` or `ranks 0, 2`."""
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"
