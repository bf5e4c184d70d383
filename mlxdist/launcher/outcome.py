"""The outcome of a job: the state of each rank, in words and as JSON.

`mlxdist run --report FILE.json` writes an `Outcome` as one JSON object:

    exit_code    of `mlxdist run`: 0 only if every rank finished; 124 after --timeout;
                 128 + the signal's number if the user ended the job
    message      the last line that `mlxdist run` printed, without its prefix; "" if all
                 ranks finished
    timed_out    whether --timeout ended the job
    stopped_by   the signal by which the user ended the job, such as "SIGINT", or null
    lost_hosts   hosts to which mpirun lost its connection
    restarts     how often the job was started again; the other fields are of the last
                 start, apart from `seconds`
    seconds      wall-clock time of all starts
    ranks        a list in the order of the ranks, of objects:
        rank     its number
        host     its host's name, or null on this machine alone
        state    "finished"  it ran to its end
                 "failed"    it raised, exited with another code than 0, or its guard
                             ended the job; `reason` says why
                 "ended"     it was ended because another rank failed
                 "killed"    it died without any report: by a signal, by os._exit, with
                             its host, or because the whole job was ended
        reason   one line on why it failed, else null
        signal   the signal that killed it, such as "SIGKILL", where mpirun reports it,
                 else null

Nothing is written if the job can't be started (exit code 2).
"""

from __future__ import annotations

import json
import os
import signal
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from . import marks
from .mpirun_log import MpirunLog

State = Literal["finished", "failed", "ended", "killed"]


@dataclass(frozen=True)
class RankOutcome:
    """The outcome of one rank; see the fields of `ranks` above."""

    rank: int
    state: State
    host: str | None = None
    reason: str | None = None
    signal: str | None = None


@dataclass(frozen=True)
class Outcome:
    """The outcome of a job; see the fields above."""

    exit_code: int
    ranks: tuple[RankOutcome, ...]
    message: str = ""
    timed_out: bool = False
    stopped_by: str | None = None
    lost_hosts: tuple[str, ...] = ()
    restarts: int = 0
    seconds: float = 0.0

    def write(self, path: Path) -> None:
        """Write the outcome as JSON, so that `path` never holds a part of it.

        Raises:
            OSError: the file can't be written.
        """
        descriptor, temporary = tempfile.mkstemp(
            prefix=f".{path.name}-", dir=path.parent
        )
        try:
            with os.fdopen(descriptor, "w") as file:
                json.dump(asdict(self), file, indent=1)
                file.write("\n")
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise


def read_ranks(
    run_dir: str,
    ranks: int,
    hosts: Sequence[str] = (),
    *,
    log: MpirunLog,
    lost_hosts: Sequence[str] = (),
    stopped: bool = False,
) -> tuple[RankOutcome, ...]:
    """Return each rank's outcome, from its marks and from mpirun's messages.

    Args:
        run_dir: folder of the marks.
        hosts: each rank's host; empty on this machine alone.
        stopped: whether the user ended the job. Which rank was killed first then tells
            nothing.
    """
    unfinished = marks.unfinished(run_dir, ranks)
    reasons = _reasons(run_dir, unfinished)
    silent = [rank for rank in unfinished if rank not in reasons]
    killed = {} if stopped else _killed(silent, hosts, log)
    ended = {
        rank
        for rank in silent
        if rank in log.disconnected or marks.mark_file(run_dir, "ended", rank).exists()
    }
    if hosts and not reasons:
        # mpirun, or Open MPI in the ranks, ends the others without a mark.
        first = [rank for rank in silent if hosts[rank] in lost_hosts] or list(killed)
        ended = set(silent) - set(first) if first else ended

    def outcome(rank: int) -> RankOutcome:
        host = hosts[rank] if hosts else None
        if rank not in unfinished:
            return RankOutcome(rank, "finished", host)
        if rank in reasons:
            return RankOutcome(rank, "failed", host, reason=reasons[rank])
        if rank in ended:
            return RankOutcome(rank, "ended", host)
        return RankOutcome(rank, "killed", host, signal=signal_name(killed.get(rank)))

    return tuple(map(outcome, range(ranks)))


def _reasons(run_dir: str, ranks: Iterable[int]) -> dict[int, str]:
    files = {rank: marks.mark_file(run_dir, "failed", rank) for rank in ranks}
    return {
        rank: file.read_text(errors="replace")
        for rank, file in files.items()
        if file.exists()
    }


def _killed(
    silent: Sequence[int], hosts: Sequence[str], log: MpirunLog
) -> dict[int, int | None]:
    """Return the ranks that died first, with the signal if it is known."""
    killed = {rank: number for rank, number in log.killed.items() if rank in silent}
    if killed or not (hosts and log.peer_hosts):
        return killed
    first = _short_name(log.peer_hosts[0])
    return dict.fromkeys(rank for rank in silent if _short_name(hosts[rank]) == first)


def describe(ranks: Sequence[RankOutcome], lost_hosts: Sequence[str] = ()) -> str:
    """Return the sentence that names the ranks that failed, died and were ended."""
    if all(rank.state == "finished" for rank in ranks):
        return f"all ranks of {len(ranks)} finished"
    by_reason: dict[str, list[RankOutcome]] = {}
    for rank in ranks:
        if rank.reason is not None:
            by_reason.setdefault(rank.reason, []).append(rank)
    parts = [f"lost touch with {host}" for host in lost_hosts]
    parts += [
        f"{_list(failed)} failed ({reason})" for reason, failed in by_reason.items()
    ]
    killed = [rank for rank in ranks if rank.state == "killed"]
    if killed:
        parts.append(f"{_list(killed)} of {len(ranks)} did not finish")
    ended = [rank for rank in ranks if rank.state == "ended"]
    if ended:
        verb = "was" if len(ended) == 1 else "were"
        parts.append(f"{_list(ended)} {verb} ended with it")
    return "; ".join(parts)


def signal_name(number: int | None) -> str | None:
    """Return a signal's name, such as "SIGKILL"; None if no signal has it."""
    names = {each.value: each.name for each in signal.Signals}
    return None if number is None else names.get(number)


def _list(ranks: Sequence[RankOutcome]) -> str:
    """Return `ranks 0 and 1`, or `ranks 0 and 1 on mac1, rank 2 on mac2`."""
    by_host: dict[str | None, list[int]] = {}
    for rank in ranks:
        by_host.setdefault(rank.host, []).append(rank.rank)
    return ", ".join(
        _list_numbers(numbers) + (f" on {host}" if host else "")
        for host, numbers in by_host.items()
    )


def _list_numbers(numbers: Sequence[int]) -> str:
    *others, last = map(str, numbers)
    return f"ranks {', '.join(others)} and {last}" if others else f"rank {last}"


def _short_name(name: str) -> str:
    return name.partition(".")[0]
