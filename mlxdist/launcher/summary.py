"""The last line of `mlxdist run`: how a job ended, in words, and its exit code."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace

from .outcome import Outcome, RankOutcome, State, signal_name
from .visible_text import visible

TIMED_OUT = 124  # the exit code of timeout(1)
_MOST_REASONS = 3  # that are named
_LONGEST_REASON = 160  # characters, where a traceback has the rest


def conclude(
    code: int,
    ranks: tuple[RankOutcome, ...],
    *,
    lost_hosts: Sequence[str] = (),
    name_hosts: bool = False,
    time_limit: float | None = None,
    received: int | None = None,
    has_leftover: bool = False,
    was_stopped: bool = False,
) -> Outcome:
    """Return the outcome, with the exit code of `mlxdist run` and its last message.

    Args:
        code: mpirun's exit code; a signal's negative number if one ended it.
        name_hosts: name each rank's host.
        time_limit: the limit in seconds, if it ended the job.
        received: the signal by which the user ended the job.
        has_leftover: whether mpirun waited for a process that a finished rank started.
        was_stopped: whether the job was ended because mpirun was stopped.
    """
    outcome = Outcome(code, ranks, lost_hosts=tuple(lost_hosts))
    summary = describe(ranks, lost_hosts, name_hosts=name_hosts)
    if received is not None:
        name = signal_name(received)
        return replace(
            outcome,
            exit_code=128 + received,
            message=f"ended by {name}; {summary}.",
            stopped_by=name,
        )
    if time_limit is not None:
        message = f"ended after --timeout {time_limit:g} s; {summary}."
        return replace(outcome, exit_code=TIMED_OUT, message=message, timed_out=True)
    finished = all(rank.state == "finished" for rank in ranks)
    remark = _remark(code, lost_hosts, has_leftover=has_leftover)
    if finished and (remark or code == 0):
        message = visible(f"{summary}; {remark}.") if remark else ""
        return replace(outcome, exit_code=0, message=message)
    exit_code = (128 - code if code < 0 else code) or 1
    end = "mpirun was stopped (SIGSTOP)" if was_stopped else _describe_code(code)
    message = f"{summary}; {end}."
    return replace(outcome, exit_code=exit_code, message=message)


def _remark(code: int, lost_hosts: Sequence[str], *, has_leftover: bool) -> str:
    """Return what went wrong after all ranks had finished, "" for nothing."""
    if has_leftover:
        return "a process that one of them started still runs"
    if code and lost_hosts:
        return f"mpirun lost touch with {' and '.join(lost_hosts)} after that"
    return ""


def describe(
    ranks: Sequence[RankOutcome],
    lost_hosts: Sequence[str] = (),
    *,
    name_hosts: bool = False,
) -> str:
    """Return the sentence that names the ranks that failed, died and were ended."""
    if all(rank.state == "finished" for rank in ranks):
        return "the rank finished" if len(ranks) == 1 else "all ranks finished"
    # A host whose rank reported its failure was lost after that, as its daemon
    # may be while mpirun ends the job.
    reported = {rank.host for rank in ranks if rank.state == "failed" or rank.signal}
    parts = [f"lost touch with {host}" for host in lost_hosts if host not in reported]
    failures = list(_group(ranks, "failed", lambda rank: rank.reason).values())
    for failed in failures[:_MOST_REASONS]:
        names = _names(failed, len(ranks), name_hosts)
        parts.append(f"{names} failed{_details(failed)}")
    others = sum(map(len, failures[_MOST_REASONS:]))
    if others:
        parts.append(f"{others} more failed with other errors")
    for name, killed in _group(ranks, "killed", lambda rank: rank.signal).items():
        was = "was" if len(killed) == 1 else "were"
        how = f"{was} killed by {name}" if name else "did not finish"
        parts.append(f"{_names(killed, len(ranks), name_hosts)} {how}")
    ended = [rank for rank in ranks if rank.state == "ended"]
    if ended:
        was = "was" if len(ended) == 1 else "were"
        parts.append(f"{_names(ended, None, name_hosts)} {was} ended with it")
    return visible("; ".join(parts))  # of reasons and hosts, on one line


def _group(
    ranks: Sequence[RankOutcome],
    state: State,
    key: Callable[[RankOutcome], str | None],
) -> dict[str | None, list[RankOutcome]]:
    """Return the ranks in a state, grouped by a key."""
    groups: dict[str | None, list[RankOutcome]] = {}
    for rank in ranks:
        if rank.state == state:
            groups.setdefault(key(rank), []).append(rank)
    return groups


def _details(ranks: Sequence[RankOutcome]) -> str:
    """Return ` in user code, after step 3, at train.py:42, in loss (KeyError: 'x')`."""
    reason = (ranks[0].reason or "").strip()
    parts = [rank.step for rank in ranks if rank.step][:1]
    locations = dict.fromkeys(rank.location for rank in ranks if rank.location)
    if locations:
        short = [each.removeprefix(os.getcwd() + os.sep) for each in locations]
        parts.append(f"at {' and '.join(short[:_MOST_REASONS])}")
        if len(reason) > _LONGEST_REASON:
            reason = f"{reason[:_LONGEST_REASON]}..."
    where = f" {', '.join(parts)}" if parts else ""
    return where + (f" ({reason})" if reason else "")


def _describe_code(code: int) -> str:
    if code < 0:
        return f"mpirun was ended by {signal_name(-code)}"
    return f"exit code {code}" if code else "mpirun exited with code 0"


def _names(ranks: Sequence[RankOutcome], size: int | None, with_hosts: bool) -> str:
    """Return `ranks 0 and 1 of 4`, or `ranks 0 and 1 of 4 on mac1, rank 2 on mac2`.

    Args:
        size: the number of all ranks, None not to name it.
    """
    by_host: dict[str | None, list[int]] = {}
    for rank in ranks:
        by_host.setdefault(rank.host if with_hosts else None, []).append(rank.rank)
    names = []
    for index, (host, numbers) in enumerate(by_host.items()):
        of_all = f" of {size}" if size is not None and index == 0 else ""
        names.append(_numbers(numbers) + of_all + (f" on {host}" if host else ""))
    return ", ".join(names)


def _numbers(numbers: Sequence[int]) -> str:
    """Return `rank 3`, `ranks 0 and 3`, or `ranks 0 to 5 and 7`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    words = [
        word
        for run in runs
        for word in ([f"{run[0]} to {run[-1]}"] if len(run) > 2 else map(str, run))
    ]
    *others, last = words
    plural = "s" if len(numbers) > 1 else ""
    return (
        f"rank{plural} {', '.join(others)} and {last}"
        if others
        else (f"rank{plural} {last}")
    )
