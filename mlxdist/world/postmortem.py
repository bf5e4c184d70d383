"""Postmortem of a failed job: which rank was the first to take another course.

Reads the files that `Recorder.write` left, one per rank.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path

from ..comm.agreement import ranks_text
from ..comm.flight_recorder import RankInfo, Record, Status

_REMEDY = (
    "wanted the folder that a failed job printed, such as "
    "mlxdist-postmortem/20260131-120000-4711"
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

    def __str__(self) -> str:
        waiting = ", waiting for others" if self.status.waiting else ""
        return (
            f"rank {self.rank} on {self.info.host}: {self.status}, "
            f"collective {self.status.sequence}{waiting}"
        )


def load(folder: Path) -> list[RankRecord]:
    """Return the records in a folder, by rank.

    Raises:
        ValueError: there are none, or a file is not a rank's record.
    """
    if not folder.is_dir():
        raise ValueError(f"--postmortem {folder}: there is no such folder; {_REMEDY}")
    ranks = [_read(path) for path in folder.glob("rank-*.jsonl")]
    if not ranks:
        raise ValueError(f"--postmortem {folder}: it has no rank-*.jsonl; {_REMEDY}")
    return sorted(ranks, key=lambda record: record.rank)


def _read(path: Path) -> RankRecord:
    try:
        first, *lines = map(json.loads, path.read_text().splitlines())
        info, status = (
            {field.name: first[field.name] for field in fields(kind)}
            for kind in (RankInfo, Status)
        )
        info["rank"] = int(info["rank"])
        return RankRecord(
            RankInfo(**info), Status(**status), [Record(**line) for line in lines]
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a rank's record: {error!r}") from error


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
    """Return each rank's last activity, where they diverged, and their stacks."""
    ranks = load(folder)
    lines = [*map(str, ranks), "", divergence(ranks)]
    size = max(record.info.size for record in ranks)
    for rank in sorted(set(range(size)) - {record.rank for record in ranks}):
        lines.append(f"rank {rank} wrote nothing: it was killed, stopped, or crashed")
    for record in ranks:
        if record.info.stack:
            lines += ["", f"stack of rank {record.rank}:", *record.info.stack]
    return "\n".join(lines)
