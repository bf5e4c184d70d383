"""The outcome of a job: the state of each rank, in words and as JSON.

`mlxdist run --report FILE.json` writes an `Outcome` as one JSON object:

    exit_code    of `mlxdist run`: 0 only if every rank finished; 124 after --timeout;
                 128 + the signal's number if the user ended the job
    message      the last line that `mlxdist run` printed, without its prefix; "" if all
                 ranks finished and there is nothing to say
    timed_out    whether --timeout ended the job
    stopped_by   the signal by which the user ended the job, such as "SIGINT", or null
    lost_hosts   hosts to which mpirun lost its connection
    record       the folder with the records of all ranks, or null without one
    restarts     how often the job was started again; the other fields are of the last
                 start, apart from `seconds`
    seconds      wall-clock time of all starts
    ranks        a list in the order of the ranks, of objects:
        rank     its number
        host     its host's name
        state    "finished"  it ran to its end
                 "failed"    it raised, exited with another code than 0, called
                             MPI_Abort, or its guard ended the job; `reason` says why
                 "ended"     it was ended because another rank failed
                 "killed"    it died without any report: by a signal, by os._exit, with
                             its host, or because the whole job was ended
        reason   one line on why it failed, else null
        step     what it was doing then, such as "in user code, after step 3", or null
        location the line of the user's code that failed, such as
                 "/home/me/train.py:42, in loss", or null
        signal   the signal that killed it, such as "SIGKILL", where mpirun reports it,
                 else null

Nothing is written if the job can't be started (exit code 2).
"""

from __future__ import annotations

import json
import signal
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from . import marks
from .mpirun_log import MpirunLog
from .private_files import write_atomically

State = Literal["finished", "failed", "ended", "killed"]


@dataclass(frozen=True)
class RankOutcome:
    """The outcome of one rank; see the fields of `ranks` above."""

    rank: int
    state: State
    host: str | None = None
    reason: str | None = None
    step: str | None = None
    location: str | None = None
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
    record: str | None = None
    restarts: int = 0
    seconds: float = 0.0

    def write(self, path: Path) -> None:
        """Write the outcome as JSON, so that `path` never holds a part of it.

        Makes its folder.

        Raises:
            OSError: the file can't be written.
        """
        text = json.dumps(asdict(self), indent=1)
        write_atomically(path, f"{text}\n")


def read_ranks(
    run_dir: str,
    hosts: Sequence[str],
    *,
    log: MpirunLog,
    lost_hosts: Sequence[str] = (),
    stopped: bool = False,
) -> tuple[RankOutcome, ...]:
    """Return each rank's outcome, from its marks and from mpirun's messages.

    Args:
        run_dir: folder of the marks.
        hosts: each rank's host.
        stopped: whether the user ended the job. Which rank was killed first is then no
            evidence.
    """
    unfinished = marks.unfinished(run_dir, len(hosts))
    reasons = _reasons(run_dir, unfinished, log)
    silent = [rank for rank in unfinished if rank not in reasons]
    killed = {} if stopped else _killed(silent, hosts, log)
    ended = {
        rank
        for rank in silent
        if rank in log.disconnected or marks.mark_file(run_dir, "ended", rank).exists()
    }
    if not stopped and not reasons:
        # mpirun, or Open MPI in the ranks, ends the others without a mark.
        first = [rank for rank in silent if hosts[rank] in lost_hosts] or list(killed)
        ended = set(silent) - set(first) if first else ended
    elif not stopped:
        ended |= set(silent) - set(killed)

    def outcome(rank: int) -> RankOutcome:
        host = hosts[rank]
        if rank not in unfinished:
            return RankOutcome(rank, "finished", host)
        if rank in reasons:
            details = (marks.read(run_dir, x, rank) for x in ("step", "location"))
            return RankOutcome(rank, "failed", host, reasons[rank], *details)
        if rank in ended:
            return RankOutcome(rank, "ended", host)
        return RankOutcome(rank, "killed", host, signal=signal_name(killed.get(rank)))

    return tuple(map(outcome, range(len(hosts))))


def _reasons(run_dir: str, ranks: Sequence[int], log: MpirunLog) -> dict[int, str]:
    aborted = {rank: "it called MPI_Abort" for rank in log.aborted if rank in ranks}
    texts = {rank: marks.read(run_dir, "failed", rank) for rank in ranks}
    return aborted | {rank: x for rank, x in texts.items() if x is not None}


def _killed(
    silent: Sequence[int], hosts: Sequence[str], log: MpirunLog
) -> dict[int, int | None]:
    """Return the ranks that died first, with the signal if it is known."""
    killed = {rank: number for rank, number in log.killed.items() if rank in silent}
    if killed or not log.peer_hosts:
        return killed
    first = _short_name(log.peer_hosts[0])
    return dict.fromkeys(rank for rank in silent if _short_name(hosts[rank]) == first)


def signal_name(number: int | None) -> str | None:
    """Return a signal's name, such as "SIGKILL"; None if no signal has it."""
    names = {each.value: each.name for each in signal.Signals}
    return None if number is None else names.get(number)


def _short_name(name: str) -> str:
    return name.partition(".")[0]
