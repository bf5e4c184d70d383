"""Marks: how a rank reports its end to `mlxdist run`.

mpirun exits with 0 in some cases where ranks have died, so its exit code alone does not
show that a job has finished. A rank leaves the mark "done" as the last thing that its
Python does, "failed" with the reason if it raises or exits with another code than 0,
and "ended" if it is stopped because another rank failed. A rank that dies leaves none.

On the launcher's own machine a mark is a file in the launcher's folder. Hosts share no
folder, so there a mark is a line on standard error, which mpirun carries to the
launcher; a random token distinguishes it from the job's output.

`rank_main` loads this file before the package exists: standard library only.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from . import environment
from .join_deadline import rank_names

MARKS = (
    "joining",  # it has called mlxdist.init()
    "joined",  # and all ranks have come there
    "leaving",  # all ranks have finished; the seconds that MPI_Finalize may take
    "done",
    "failed",
    "ended",
    "alone",  # it used MLX, and never joined the other ranks
    # What a rank that failed adds:
    "step",  # what it was doing
    "location",  # the line of the user's code
    "traceback",
    "record",  # the folder with the records of all ranks
)
LINE_START = "\x1emlxdist"  # of a mark on standard error; the token follows
_CHUNK = 120  # characters of a mark's text in a line on standard error
_LONGEST_TEXT = 16_000  # characters
_STDERR = 2


class Chunk(NamedTuple):
    """A line on standard error: a part of a mark, from 0, and the number of parts."""

    mark: str
    rank: int
    part: int
    parts: int
    text: str


def mark_file(run_dir: str, mark: str, rank: int | str) -> Path:
    """Return the file for one of MARKS; that of "failed" holds the reason."""
    return Path(run_dir, f"rank-{rank}.{mark}")


def pid_file(run_dir: str, rank: int | str) -> Path:
    """Return the file with a rank's process id, locked while that process lives."""
    return Path(run_dir, f"rank-{rank}.pid")


def unfinished(run_dir: str, ranks: int) -> list[int]:
    """Return the ranks without the mark "done"."""
    return [
        rank for rank in range(ranks) if not mark_file(run_dir, "done", rank).exists()
    ]


def all_started(run_dir: str, ranks: int) -> bool:
    """Return whether each rank has announced itself; False over several hosts."""
    return all(pid_file(run_dir, rank).exists() for rank in range(ranks))


def process_ids(run_dir: str, ranks: int) -> list[str]:
    """Return the process ids of the ranks that have announced themselves."""
    files = [pid_file(run_dir, rank) for rank in range(ranks)]
    return [file.read_text() for file in files if file.exists()]


def all_gone(run_dir: str, ranks: int) -> bool:
    """Return whether no rank lives any more; False over several hosts.

    After a failure, ranks that have not announced themselves count as gone too.
    """
    pids = process_ids(run_dir, ranks)
    is_known = any_failed(run_dir, ranks) or len(pids) == ranks
    return is_known and not any(map(_is_alive, pids))


def any_failed(run_dir: str, ranks: int) -> bool:
    """Return whether a rank has left the mark "failed", or "ended" as another failed.

    A rank whose host is out of reach can't leave "failed" here.
    """
    return any(
        mark_file(run_dir, mark, rank).exists()
        for mark in ("failed", "ended")
        for rank in range(ranks)
    )


def finalize_limit(run_dir: str, ranks: int) -> float:
    """Return the seconds that MPI_Finalize may take; 0.0 unless a rank has called it.

    The exit handlers of the rank are over then: it has left the mark "done", too.
    """
    done = set(range(ranks)) - set(unfinished(run_dir, ranks))
    texts = [read(run_dir, "leaving", rank) for rank in done]
    return max((float(text) for text in texts if text), default=0.0)


def unjoined(run_dir: str, ranks: int) -> tuple[list[int], list[int]]:
    """Return the ranks that wait for others to join, and those that never will.

    These have ended without a call of `mlxdist.init()`.
    """
    every = range(ranks)
    joining = {rank for rank in every if mark_file(run_dir, "joining", rank).exists()}
    joined = {rank for rank in joining if mark_file(run_dir, "joined", rank).exists()}
    waiting = [
        rank for rank in sorted(joining - joined) if not _has_ended(run_dir, rank)
    ]
    if not waiting:
        return [], []
    return waiting, [x for x in every if x not in joining and _has_ended(run_dir, x)]


def report_unjoined(run_dir: str, ranks: int) -> None:
    """Leave the mark "failed" of each rank that waits for one that never joins."""
    waiting, absent = unjoined(run_dir, ranks)
    names = rank_names(absent)
    text = f"it waits in mlxdist.init() for {names}, which ended without a call of it"
    for rank in waiting:
        with contextlib.suppress(OSError):  # the disk is full
            mark_file(run_dir, "failed", rank).write_text(text)


def _has_ended(run_dir: str, rank: int) -> bool:
    if any(mark_file(run_dir, mark, rank).exists() for mark in ("done", "failed")):
        return True
    file = pid_file(run_dir, rank)
    return file.exists() and not _is_alive(file.read_text())


def _is_alive(pid: str) -> bool:
    try:
        os.kill(int(pid or 0), 0)  # "": it is written just now
    except (ProcessLookupError, PermissionError):  # or it is another user's by now
        return False
    return True


def read(run_dir: str, mark: str, rank: int) -> str | None:
    """Return the text of a rank's mark, None without the mark."""
    try:
        return mark_file(run_dir, mark, rank).read_text(errors="replace")
    except FileNotFoundError:
        return None


def announce(rank: int | str) -> int | None:
    """Prepare this process to leave marks, and record its process id.

    Returns:
        Descriptor of the locked file with the process id, to be kept open until the
        process ends; None where marks are lines on standard error.
    """
    pid = os.getpid()
    run_dir = environment.get(environment.RUN_DIR)
    if run_dir:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        descriptor = os.open(pid_file(run_dir, rank), flags, 0o600)
        fcntl.lockf(descriptor, fcntl.LOCK_EX)
        os.write(descriptor, b"%d" % pid)
        return descriptor
    token = environment.get(environment.MARKS)
    if token:
        # The script may redirect standard error, so the marks go to a copy of it. The
        # process id keeps child processes from writing to a file of the same number.
        environment.update({environment.MARKS: f"{token}:{pid}/{os.dup(2)}"})
    return None


def are_read() -> bool:
    """Return whether `mlxdist run` reads the marks of this process."""
    return bool(environment.get(environment.RUN_DIR)) or _stream() is not None


def _stream() -> tuple[str, int] | None:
    """Return the token and the descriptor for marks on standard error.

    None where `announce` did not prepare this process for them.
    """
    token, _, owner = (environment.get(environment.MARKS) or "").rpartition(":")
    pid, _, descriptor = owner.partition("/")
    return (token, int(descriptor)) if pid == str(os.getpid()) else None


def leave_mark(mark: str, rank: int | str, text: str = "") -> bool:
    """Leave one of MARKS if `mlxdist run` started this process, else do nothing.

    Only the first mark of a kind counts, and of the text of "failed" the first line.

    Returns:
        Whether `mlxdist run` gets the mark.

    Raises:
        OSError: the mark could not be written.
    """
    text = text.partition("\n")[0] if mark == "failed" else text[-_LONGEST_TEXT:]
    run_dir = environment.get(environment.RUN_DIR)
    if run_dir:
        path = mark_file(run_dir, mark, rank)
        if not path.exists():
            path.write_text(text, errors="replace")
        return True
    stream = _stream()
    if stream is None:
        return False
    token, descriptor = stream
    for line in _lines(token, mark, rank, text):
        # Twice: mpirun may cut a line in two when it reads much at once, and text of
        # another rank may come between.
        os.write(descriptor, 2 * line.encode())
    return True


def prepare(mark: str, rank: int | str, text: str) -> tuple[str, str, int]:
    """Return what another process needs to leave a mark of this rank.

    Returns:
        The path of the mark's file, or the mark as lines and the descriptor that they
        go to. The path and the lines are "" where nobody reads marks.
    """
    run_dir = environment.get(environment.RUN_DIR)
    if run_dir:
        return str(mark_file(run_dir, mark, rank)), "", _STDERR
    token, descriptor = _stream() or ("", _STDERR)
    lines = "".join(2 * line for line in _lines(token, mark, rank, text))
    return "", lines if token else "", descriptor


def _lines(token: str, mark: str, rank: int | str, text: str) -> list[str]:
    escaped = json.dumps(text)  # ASCII, and no end of line
    starts = range(0, len(escaped), _CHUNK)
    return [
        f"{LINE_START} {token} {mark} {rank} {part} {len(starts)} "
        f"{escaped[start : start + _CHUNK]}\n"
        for part, start in enumerate(starts)
    ]


def parse_line(line: str) -> Chunk | None:
    """Return the part of a mark in a line, without its start and token."""
    mark, _, rest = line.partition(" ")
    rank, part, parts, text = (*rest.split(" ", 3), *4 * [""])[:4]
    if mark not in MARKS or not all(x.isdecimal() for x in (rank, part, parts)):
        return None
    return Chunk(mark, int(rank), int(part), int(parts), text)


def join_chunks(chunks: Mapping[int, str]) -> str:
    """Return the text of a mark from all its parts, by their number."""
    try:
        return str(json.loads("".join(chunks[part] for part in sorted(chunks))))
    except ValueError:  # a part was cut
        return ""
