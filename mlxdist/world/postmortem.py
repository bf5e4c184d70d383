"""Postmortem of a failed job: which rank failed first, where, and why.

Reads the files that `record_file.write_record` left, one per rank.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from ..comm.agreement import ranks_text
from ..comm.flight_recorder import RankInfo, Record, Status
from ..launcher import metal_errors
from ..launcher.failure import OUTCOME_FILE
from ..launcher.private_files import read_text
from ..launcher.visible_text import visible, visible_lines

_REMEDY = (
    "wanted the folder that a failed job printed, such as "
    "mlxdist-postmortem/20260131-120000-4711, or the folder of several"
)
_FILES = "rank-*.jsonl"
_LISTED = 10  # earlier jobs
_LARGEST_RECORD = 2**26  # bytes
_MOST_RANKS = 2**20
_FROM_OUTSIDE = (
    "no rank failed: the job was ended from outside, by SIGTERM or with its mpirun"
)


@dataclass(frozen=True)
class RankRecord:
    """Contents of one rank's file: its status at the end and its last collectives."""

    info: RankInfo
    status: Status
    records: list[Record]

    @property
    def rank(self) -> int:
        return self.info.rank

    @property
    def name(self) -> str:
        return f"rank {self.rank} on {self.info.host}"

    def __str__(self) -> str:
        failure = self.info.failure
        if failure is not None and self.traceback:
            return f"{self.name}: failed {failure.activity}{_at(failure.location)}"
        sequence = f"collective {self.status.sequence}" * (self.status.sequence > 0)
        parts = [str(self.status), sequence, "waiting for others" * self.status.waiting]
        return f"{self.name}: {', '.join(filter(None, parts))}{_at(self.info.location)}"

    @property
    def traceback(self) -> list[str]:
        """Lines of the exception that the rank did not catch; none without one."""
        return [] if self.info.failure is None else self.info.failure.traceback


def _at(location: str) -> str:
    return f"; at {location}" if location else ""


def find_job(folder: Path) -> tuple[Path, list[Path]]:
    """Return the folder of a job's records, and those of earlier jobs in the same one.

    Args:
        folder: a job's folder, or one that has several, of which the newest counts.

    Raises:
        ValueError: there are no records in it.
    """
    if not folder.is_dir():
        problem = "that is a file" if folder.exists() else "there is no such folder"
        raise ValueError(f"--postmortem {folder}: {problem}; {_REMEDY}")
    if any(folder.glob(_FILES)):
        return folder, []
    jobs = {path.parent for path in folder.glob(f"*/{_FILES}")}
    if not jobs:
        raise ValueError(f"--postmortem {folder}: it has no {_FILES}; {_REMEDY}")
    newest, *others = sorted(jobs, key=_last_written, reverse=True)
    return newest, others


def _last_written(job: Path) -> float:
    return max(path.stat().st_mtime for path in job.glob(_FILES))


def load(folder: Path) -> list[RankRecord]:
    """Return the records of one job, by rank.

    Raises:
        ValueError: a file is not a rank's record.
    """
    ranks = [_read(path) for path in folder.glob(_FILES)]
    return sorted(ranks, key=lambda record: record.rank)


def _read(path: Path) -> RankRecord:
    try:
        text = read_text(path, _LARGEST_RECORD)
        first, *lines = (_visible(json.loads(line)) for line in text.splitlines())
        info = msgspec.convert(first, RankInfo)
        if not 0 <= info.rank < info.size <= _MOST_RANKS:
            raise ValueError(f"found rank {info.rank} of {info.size}")
        status = msgspec.convert({**asdict(Status()), **first}, Status)
        return RankRecord(info, status, msgspec.convert(lines, list[Record]))
    except (
        ValueError,
        TypeError,
        RecursionError,
        OSError,
        msgspec.ValidationError,
    ) as error:
        raise ValueError(f"{path} is not a rank's record: {error!r}") from error


def _visible(value: Any) -> Any:
    """Return JSON in which no string has a control character, nor the end of a line.

    Messages keep their lines; the report indents them.
    """
    match value:
        case str():
            return visible(value)
        case list():
            return [_visible(item) for item in value]
        case dict():
            return {
                key: visible_lines(item)
                if key in ("message", "notice") and isinstance(item, str)
                else _visible(item)
                for key, item in value.items()
            }
    return value


def _outcome(job: Path) -> str:
    """Return how the job ended, as `mlxdist run` has said it; "" without that."""
    try:
        text = read_text(job / OUTCOME_FILE, _LARGEST_RECORD)
        return f"mlxdist run: {visible(json.loads(text)['message'])}\n"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return ""


def cause(ranks: list[RankRecord], outcome: str = "") -> str:
    """Return which rank failed first, with its error and the line of the user's code.

    The time of a failure is by the clock of the rank's own host.

    Args:
        outcome: of the job, for where no rank could write why it failed.
    """
    failed = [(each.info.failure, each) for each in ranks if each.info.failure]
    if not failed:
        notice = next((each.info.notice for each in ranks if each.info.notice), "")
        missing = _missing(ranks)
        return notice or outcome + (_no_record(missing) if missing else _FROM_OUTSIDE)
    failure, first = min(failed, key=lambda each: each[0].time)
    if not failure.traceback:
        return failure.describe(first.name)
    same = [each.rank for other, each in failed if other.message == failure.message]
    many = f"{ranks_text(same)} failed with the same error"
    later = [
        f"{each.name} failed {other.time - failure.time:.1f} s later: "
        + other.message.partition("\n")[0]
        for other, each in failed
        if other.message != failure.message
    ]
    title = many if len(same) > 1 else f"{first.name} failed first"
    meaning = metal_errors.explain(failure.message)
    meanings = [f"{first.name}: {meaning}"] * bool(meaning)
    return "\n".join([failure.describe(title), *meanings, *later])


def divergence(ranks: list[RankRecord]) -> str:
    """Return the first collective at which ranks differ, or which ranks fell behind."""
    by_rank = {
        rank.rank: {record.sequence: record for record in rank.records}
        for rank in ranks
    }
    # Ranks keep their last records only. Before this one, some have none to compare.
    first = max(min(records, default=0) for records in by_rank.values())
    for sequence in sorted(set().union(*by_rank.values())):
        if sequence < first:
            continue
        present = {
            rank: records[sequence]
            for rank, records in by_rank.items()
            if sequence in records
        }
        if len({record.signature for record in present.values()}) > 1:
            lines = [f"  rank {rank}: {record}" for rank, record in present.items()]
            return f"the ranks differ at collective {sequence}:\n" + "\n".join(lines)
        if len(present) < len(by_rank):
            absent = [rank for rank in by_rank if rank not in present]
            return (
                f"{ranks_text(absent)} did not reach collective {sequence}, which the "
                f"others started: {next(iter(present.values()))}"
            )
    return "all ranks started the same collectives; none is ahead"


def report(folder: Path) -> str:
    """Return why the job ended, what each rank did last, and their stacks.

    Args:
        folder: of a job's records, or of several jobs', of which the newest counts.

    Raises:
        ValueError: there are no records, or a file is not a rank's record.
    """
    job, others = find_job(folder)
    ranks = load(job)
    lines = [f"the newest of {1 + len(others)} jobs: {job}", ""] if others else []
    lines += [cause(ranks, _outcome(job)), "", *map(str, ranks)]
    missing = _missing(ranks)
    if missing and any(each.info.failure or each.info.notice for each in ranks):
        lines.append(_no_record(missing))
    if len(ranks) > 1:
        lines += ["", divergence(ranks)]
    lines += _stacks(ranks)
    if others:
        lines += ["", "earlier jobs:", *(f"  {path}" for path in others[:_LISTED])]
        lines += [f"  and {len(others) - _LISTED} more"] * (len(others) > _LISTED)
    return "\n".join(lines)


def _stacks(ranks: list[RankRecord]) -> list[str]:
    """Return the lines of all tracebacks, and of the stacks of the other ranks.

    Equal ones are shown once.
    """
    by_text: dict[tuple[str, ...], list[RankRecord]] = {}
    for record in ranks:
        text = tuple(record.traceback or record.info.stack)
        by_text.setdefault(text, []).append(record)
    lines = []
    for text, same in by_text.items():
        title = "traceback" if same[0].traceback else "stack"
        names = ranks_text([record.rank for record in same])
        lines += ["", f"{title} of {names}:", *text] if text else []
    return lines


def _missing(ranks: list[RankRecord]) -> list[int]:
    size = max(record.info.size for record in ranks)
    return sorted(set(range(size)) - {record.rank for record in ranks})


def _no_record(ranks: list[int]) -> str:
    return (
        f"{ranks_text(ranks)} left no record here: killed, stopped, crashed or exited. "
        "The record of a rank on another host is there."
    )
