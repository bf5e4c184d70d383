"""Reads what the ranks wrote when a job died, and says which went its own way first."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..comm.agreement import ranks_text

# What has to be the same on all ranks for one record; the times are not.
_SHARED = ("sequence", "name", "call", "step", "elements", "dtype", "nbytes")


@dataclass(frozen=True)
class RankRecord:
    """One rank's file: what it was at the end, and its last collectives."""

    rank: int
    about: dict[str, Any]
    records: list[dict[str, Any]]

    @property
    def sequence(self) -> int:
        return int(self.about["sequence"])

    def by_sequence(self) -> dict[int, tuple[Any, ...]]:
        """What has to be the same on all ranks, by the number of the collective."""
        return {
            record["sequence"]: tuple(record[name] for name in _SHARED)
            for record in self.records
        }

    def told(self) -> str:
        about = self.about
        doing = about["call"] or ("its end" if about["leaving"] else "its own code")
        phase = f", {about['phase']}" if about["phase"] else ""
        waiting = ", waiting for others" if about["waiting"] else ""
        return (
            f"rank {self.rank} on {about['host']}: in {doing}{phase}, step "
            f"{about['step']}, collective {self.sequence}{waiting}"
        )


def load(folder: Path) -> list[RankRecord]:
    """The files of a folder, by rank.

    Raises:
        ValueError: where there are none, or one is not what a rank writes.
    """
    found = []
    wanted = (
        "wanted the folder that a job which died printed, such as "
        "mlxdist-postmortem/20260131-120000-4711"
    )
    if not folder.is_dir():
        raise ValueError(f"--postmortem {folder}: there is no such folder; {wanted}")
    for path in sorted(folder.glob("rank-*.jsonl")):
        try:
            about, *records = map(json.loads, path.read_text().splitlines())
            found.append(RankRecord(int(about["rank"]), about, records))
            found[-1].told()
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a rank's record: {error!r}") from error
    if not found:
        raise ValueError(f"--postmortem {folder}: it has no rank-*.jsonl; {wanted}")
    return sorted(found, key=lambda one: one.rank)


def divergence(ranks: list[RankRecord]) -> str:
    """The first collective in which ranks differ, or which of them fell behind."""
    by_rank = {
        one.rank: {
            r["sequence"]: tuple(r[name] for name in _SHARED) for r in one.records
        }
        for one in ranks
    }
    first = max(min(records, default=0) for records in by_rank.values())
    for sequence in sorted(set().union(*by_rank.values())):
        if sequence < first:  # some have forgotten it
            continue
        there = {
            r: records[sequence]
            for r, records in by_rank.items()
            if sequence in records
        }
        if len(set(there.values())) > 1:
            lines = [f"  rank {rank}: {_told(one)}" for rank, one in there.items()]
            return f"the ranks part at collective {sequence}:\n" + "\n".join(lines)
        if len(there) < len(by_rank):
            absent = [rank for rank in by_rank if rank not in there]
            told = _told(next(iter(there.values())))
            return (
                f"{ranks_text(absent)} did not come to collective {sequence}, which "
                f"the others began: {told}"
            )
    return "all ranks began the same collectives; none is ahead"


def _told(record: tuple[Any, ...]) -> str:
    _, name, call, step, elements, dtype, _ = record
    what = f" of {elements} {dtype}" if elements else ""
    where = f" in {call}, step {step}" if call else ""
    return f"{name}{what}{where}"


def report(folder: Path) -> str:
    """What each rank was doing, where they parted, and their last calls."""
    ranks = load(folder)
    lines = [one.told() for one in ranks]
    lines += ["", divergence(ranks)]
    size = max(one.about.get("size", one.rank + 1) for one in ranks)
    missing = set(range(size)) - {one.rank for one in ranks}
    for rank in sorted(missing):
        lines.append(f"rank {rank} wrote nothing: it was killed, stopped, or crashed")
    for one in ranks:
        if one.about.get("stack"):
            lines += ["", f"rank {one.rank} was here:", *one.about["stack"]]
    return "\n".join(lines)
