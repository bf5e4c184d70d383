"""Marks: how a rank reports its end to `mlxdist run`.

mpirun exits with 0 in some cases where ranks have died, so its exit code alone does not
show that a job has finished. A rank leaves the mark "done" as the last thing that its
Python does, "failed" with the reason if it raises or exits with another code than 0,
and "ended" if it is stopped because another rank failed. A rank that dies leaves none.

On the launcher's own machine a mark is a file in the launcher's folder. Hosts share no
folder, so there a mark is a line on standard error, which mpirun carries to the
launcher; a random token tells it from the job's own output.

`rank_main` loads this file before the package exists: standard library only.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import IO

from . import environment

MARKS = ("done", "failed", "ended")
LINE_START = "\x1emlxdist"  # of a mark on standard error; the token follows
_LONGEST_REASON = 100  # characters, on standard error


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


def announce(rank: int | str) -> IO[str] | None:
    """Prepare this process to leave marks, and record its process id.

    Returns:
        The locked file with the process id, to be kept open until the process ends;
        None where marks are lines on standard error.
    """
    pid = os.getpid()
    run_dir = environment.get(environment.RUN_DIR)
    if run_dir:
        file = pid_file(run_dir, rank).open("w")
        fcntl.lockf(file, fcntl.LOCK_EX)
        file.write(str(pid))
        file.flush()
        return file
    token = environment.get(environment.MARKS)
    if token:
        # The script may redirect standard error, so the marks go to a copy of it. The
        # process id keeps child processes from writing to a file of the same number.
        environment.update({environment.MARKS: f"{token}:{pid}/{os.dup(2)}"})
    return None


def leave_mark(mark: str, rank: int | str, reason: str = "") -> None:
    """Leave one of MARKS if `mlxdist run` started this process, else do nothing.

    Only the first line of `reason` is used, and only the first mark of a kind counts.

    Raises:
        OSError: the mark could not be written.
    """
    reason = reason.partition("\n")[0]
    run_dir = environment.get(environment.RUN_DIR)
    if run_dir:
        path = mark_file(run_dir, mark, rank)
        if not path.exists():
            path.write_text(reason, errors="replace")
        return
    token, _, owner = (environment.get(environment.MARKS) or "").rpartition(":")
    pid, _, descriptor = owner.partition("/")
    if token and pid == str(os.getpid()):
        line = f"{LINE_START} {token} {mark} {rank} {reason[:_LONGEST_REASON]}\n"
        # Twice: mpirun may cut a line in two when it reads much at once, and text of
        # another rank may come between.
        os.write(int(descriptor), 2 * line.encode(errors="replace"))
