"""Collective error handling: if one rank fails, every rank raises the same error."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TypeVar

import msgspec

from ..comm.agreement import OnAllRanks, difference, error_text
from ..launcher.visible_text import visible_lines
from ..layout.wording import shortened

AllGather = Callable[[bytes], list[bytes]]  # returns every rank's bytes, in rank order
Report = TypeVar("Report")
Result = TypeVar("Result")

_MAX_PROBLEM = 2000  # characters of one rank's problem


class CheckpointError(ValueError, OnAllRanks):
    """A checkpoint can't be saved or loaded. Raised on all ranks.

    Control characters are escaped: names may come from a file that another user made.
    """

    def __init__(self, message: str) -> None:
        super().__init__(visible_lines(message))


def problem_of(error: Exception) -> str:
    """Return an error as text; its type too, where its message may not say enough."""
    if isinstance(error, ValueError | OSError) and str(error):
        return shortened(str(error), _MAX_PROBLEM)
    return shortened(error_text(error), _MAX_PROBLEM)


def attempt(action: Callable[[], Result]) -> tuple[Result | None, str | None]:
    """Return the result of this rank's part, or None and what went wrong.

    An error of any kind is caught, since the other ranks wait for this one.
    """
    try:
        return action(), None
    except OnAllRanks:
        raise
    except Exception as error:
        return None, problem_of(error)


def on_all_ranks(
    all_gather: AllGather, failure: str, action: Callable[[], Result]
) -> Result:
    """Return the result of this rank's part, if no rank failed. Called by all ranks.

    Raises:
        CheckpointError: on all ranks, if one of them failed.
    """
    result, problem = attempt(action)
    require_success(all_gather, failure, problem, None)
    return result  # type: ignore[return-value]  # no problem, so not None in its place


def require_success(
    all_gather: AllGather, failure: str, problem: str | None, report: Report
) -> list[Report]:
    """Exchange the outcome of one stage of a save or load. Called by all ranks.

    Args:
        failure: what it means if a rank has a problem; the error begins with it.
        problem: what went wrong on this rank, or None.
        report: this rank's data for the others: a msgspec.Struct, or None.

    Returns:
        Every rank's report, in rank order.

    Raises:
        CheckpointError: on all ranks, if one of them has a problem.
    """
    kind = type(report)
    sent = json.dumps([problem, msgspec.to_builtins(report)]).encode()
    messages = [json.loads(data) for data in all_gather(sent)]
    problems = [problem for problem, _ in messages]
    if any(problems):
        texts = [problem or "ready" for problem in problems]
        same = len(set(texts)) == 1
        reason = f" {texts[0]}" if same else f"\n{difference(texts)}"
        raise CheckpointError(f"{failure}:{reason}")
    return [msgspec.convert(report, kind) for _, report in messages]
