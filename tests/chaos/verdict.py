"""What a job must show after its faults. Pure: it judges what was observed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from .kinds import Effect, Kind
from .plan import Fault, Plan

Outcome = Literal["finished", "failed", "hang", "wrong"]
_RESTART = re.compile(r"^mlxdist run: starts it again, .*$", re.MULTILINE)
_FINISHED = re.compile(r"^finished (\d+) (\d+) ([0-9a-f]+)$", re.MULTILINE)


@dataclass(frozen=True)
class Observation:
    """How one start of `mlxdist run` has ended.

    Attributes:
        exit_code: of `mlxdist run`; negative if a signal ended it.
        hung: it was still running at its deadline, and was killed.
        output, errors: what it printed on standard output and error.
        fired: indices in the plan of the faults that have struck.
        leftovers: processes and files that were left behind, one a line.
        seconds: from the start to the end.
    """

    exit_code: int
    hung: bool = False
    output: str = ""
    errors: str = ""
    fired: frozenset[int] = frozenset()
    leftovers: tuple[str, ...] = ()
    seconds: float = field(default=0.0, compare=False)


@dataclass(frozen=True)
class Verdict:
    """Outcome of a job: "finished" with equal parameters, or "failed" as it should.

    "hang" and "wrong" are faults of mlxdist, or of this test; `reason` explains them.
    """

    outcome: Outcome
    reason: str = ""


def judge(
    plan: Plan, seen: Observation, reference: str, kinds: Mapping[str, Kind]
) -> Verdict:
    """Return the verdict on a start of `mlxdist run`, restarts included.

    Args:
        reference: digest of an undisturbed run.
    """
    if seen.hung:
        return Verdict("hang", f"it still ran after {seen.seconds:.0f} s")
    wrong = (
        _wrong_digest(seen, reference)
        or _wrong_end(plan, seen, kinds)
        or _wrong_attempt(plan, seen, kinds)
        or ("left behind: " + "; ".join(seen.leftovers) if seen.leftovers else "")
    )
    if wrong:
        return Verdict("wrong", wrong)
    return Verdict("failed" if seen.exit_code else "finished")


def _wrong_digest(seen: Observation, reference: str) -> str:
    for attempt, rank, digest in _FINISHED.findall(seen.output):
        if digest != reference:
            return f"rank {rank} of attempt {attempt} has other parameters: {digest}"
    return ""


def _wrong_end(plan: Plan, seen: Observation, kinds: Mapping[str, Kind]) -> str:
    """Return what is wrong with the exit code."""
    if seen.exit_code == 0:
        last = _FINISHED.findall(seen.output)[-plan.configuration.ranks :]
        complete = {int(rank) for _, rank, _ in last}
        same = len({attempt for attempt, _, _ in last}) == 1
        if not same or complete != set(range(plan.configuration.ranks)):
            return "exit code 0, but only these ranks finished: " + str(last)
        return ""
    fired = [plan.faults[index] for index in sorted(seen.fired)]
    effects = [kinds[fault.kind].effect for fault in fired]
    if all(effect is Effect.NONE for effect in effects):
        return f"exit code {seen.exit_code}, and no fault that could cause it"
    final = [x for x in fired if kinds[x.kind].effect is Effect.ENDS_JOB]
    codes = {kinds[fault.kind].exit_code for fault in final} - {None}
    if codes and seen.exit_code not in codes:
        return f"exit code {seen.exit_code}, wanted {codes}"
    if seen.exit_code < 0 and seen.exit_code not in codes:
        return f"`mlxdist run` was ended by signal {-seen.exit_code}"
    attempts = len(_RESTART.findall(seen.errors))
    if not final and attempts < plan.max_restarts:
        return f"it was started again {attempts} times of {plan.max_restarts}"
    return ""


def _wrong_attempt(plan: Plan, seen: Observation, kinds: Mapping[str, Kind]) -> str:
    """Return which attempt failed without naming a fault of its own as the cause."""
    texts = _RESTART.split(seen.errors)
    failed = texts if seen.exit_code else texts[:-1]
    for attempt, text in enumerate(failed):
        causes = _causes(plan, seen, kinds, attempt)
        if "" in causes:  # nobody was left to name it
            continue
        if "mlxdist run: " not in text:
            return f"attempt {attempt} failed without a word of `mlxdist run`"
        if not any(re.search(cause, text) for cause in causes):
            return f"attempt {attempt} failed and does not name any of {causes}"
    return ""


def _causes(
    plan: Plan, seen: Observation, kinds: Mapping[str, Kind], attempt: int
) -> Sequence[str]:
    """Return expressions for what may have ended an attempt."""

    def concerns(fault: Fault) -> bool:
        effect = kinds[fault.kind].effect
        earlier = effect is Effect.ENDS_JOB and fault.attempt <= attempt
        return effect is not Effect.NONE and (fault.attempt == attempt or earlier)

    fired = [plan.faults[index] for index in sorted(seen.fired)]
    causes = [kinds[x.kind].cause(x, plan) for x in fired if concerns(x)]
    if plan.time_limit and causes:
        causes.append("ended after --timeout")
    return causes
