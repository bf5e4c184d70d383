"""The account of a failure on the terminal: a traceback, and where the record lies.

The ranks leave tracebacks as marks, so that one is shown where all fail the same way.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from . import marks, metal_errors
from .job_spec import Job
from .outcome import Outcome, RankOutcome
from .output import Output
from .private_files import open_log
from .standard_streams import print_error
from .visible_text import visible, visible_lines

_MOST_SHOWN = 3  # tracebacks on the terminal; there are more only if ranks differ
OUTCOME_FILE = "outcome.json"  # in the record
_MESSAGES = "mpirun.log"  # what mpirun said, in the record and in --log-dir
_FRAME = re.compile(r'  File "([^"]*)", line \d+.*\n(?:    .*\n|  \[Previous .*\n)*')
_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def report(run_dir: str, job: Job, outcome: Outcome, output: Output) -> Outcome:
    """Print why a job failed, and keep the rest in its record and its logs.

    Returns:
        The outcome with the folder of the record, and what there is to say about a job
        that has succeeded.
    """
    if all(rank.state == "finished" for rank in outcome.ranks):
        if outcome.message:  # only mpirun's messages say what is wrong
            output.print_messages()
        remark = _never_joined(run_dir, job.ranks) or _no_timeline(job)
        return replace(outcome, message=outcome.message or remark)
    record = record_folder(run_dir, job.ranks)
    texts = tracebacks(run_dir, outcome.ranks)
    show(texts, output, has_record=record is not None)
    is_known = output.log.killed or any(rank.reason for rank in outcome.ranks)
    if not (is_known or outcome.timed_out or outcome.stopped_by):
        output.print_messages()
    keep_messages(output.messages, [record, job.log_dir])
    message = _with_gpu_error(outcome, output.log.gpu_errors)
    message += "".join({explain_call(text): None for text in texts.values()})
    outcome = replace(outcome, record=record, message=message)
    if record:
        _add_outcome(Path(record), outcome)
    if record and not outcome.stopped_by:
        output.end_line()
        print_error(
            f"mlxdist run: the last calls of all ranks: mlxdist doctor --postmortem "
            f"{visible(shlex.quote(record))}"
        )
    return outcome


def _with_gpu_error(outcome: Outcome, printed: dict[int, str]) -> str:
    """Return the message of a job, with the cause where a rank had an error of Metal.

    MLX raises it, or an exception that nobody catches aborts the process, which has
    printed it then. A rank that another signal has killed may have printed anything.
    """
    for rank in outcome.ranks:
        text = rank.reason if rank.state == "failed" else None
        if rank.signal == "SIGABRT":
            text = printed.get(rank.rank)
        meaning = metal_errors.explain(text or "")
        if meaning:
            return f"{outcome.message} Rank {rank.rank}: {meaning}."
    return outcome.message


def explain_call(text: str) -> str:
    """Return what `world.rank()` means, where a traceback ends in it; else "".

    Groups of MLX have methods of these names.
    """
    *_, last = text.rstrip().splitlines() or [""]
    calls = re.findall(r"\b[\w.]+\.(?:rank|size)\(\)", text)
    if not calls or last != "TypeError: 'int' object is not callable":
        return ""
    name = calls[-1].removesuffix("()")
    return f" {name} is a number, not a method: leave out the parentheses."


def show(texts: dict[int, str], output: Output, *, has_record: bool) -> None:
    """Add the ranks' tracebacks to their logs, and print each different one.

    Args:
        has_record: whether the job has a record, which has the frames of this package.
    """
    seen = shown(texts)
    for rank, text in texts.items():
        short = without_package_frames(text) if has_record else text
        output.add(rank, text, visible_lines(short) if rank in seen else "")


def _add_outcome(record: Path, outcome: Outcome) -> None:
    """Write the outcome to the record: a rank that was killed left nothing there."""
    with contextlib.suppress(OSError):
        outcome.write(record / OUTCOME_FILE)


def _never_joined(run_dir: str, ranks: int) -> str:
    """Return what to say of ranks that ran MLX and never joined each other."""
    if ranks == 1 or not all(
        marks.mark_file(run_dir, "alone", rank).exists() for rank in range(ranks)
    ):
        return ""
    return (
        f"the {ranks} ranks never joined each other: each ran the whole program by "
        "itself, on the same files. If they were to train together, call "
        "mlxdist.init() in the script before it trains; for a single process, use -n 1."
    )


def _no_timeline(job: Job) -> str:
    """Return what to say where no rank has written the timeline that was asked for."""
    if job.timeline is None or job.hosts or job.timeline.exists():
        return ""
    return f"--timeline {job.timeline}: there is none; the script joined no world"


def tracebacks(run_dir: str, ranks: Iterable[RankOutcome]) -> dict[int, str]:
    """Return each failed rank's traceback, that of the first to fail first."""
    texts = {
        rank.rank: marks.read(run_dir, "traceback", rank.rank)
        for rank in ranks
        if rank.state == "failed"
    }
    present = {rank: text for rank, text in texts.items() if text is not None}

    def time_of(rank: int) -> int:
        return marks.mark_file(run_dir, "traceback", rank).stat().st_mtime_ns

    return {rank: present[rank] for rank in sorted(present, key=time_of)}


def shown(texts: dict[int, str]) -> dict[int, str]:
    """Return the tracebacks to show: each different one once, and not many."""
    first: dict[str, int] = {}
    for rank, text in texts.items():
        first.setdefault(text, rank)
    return {rank: text for text, rank in list(first.items())[:_MOST_SHOWN]}


def without_package_frames(text: str) -> str:
    """Return a traceback without the frames of this package, unless it has no other."""
    others = [
        frame[1] for frame in _FRAME.finditer(text) if not _is_package_file(frame[1])
    ]
    if not others:
        return text
    return _FRAME.sub(lambda x: "" if _is_package_file(x[1]) else x[0], text)


def _is_package_file(path: str) -> bool:
    return path.startswith(_PACKAGE + os.sep)


def record_folder(run_dir: str, ranks: int) -> str | None:
    """Return the folder with the ranks' records of the job, None without one."""
    folders = (marks.read(run_dir, "record", rank) for rank in range(ranks))
    return next((folder for folder in folders if folder), None)


def keep_messages(messages: bytes, folders: Sequence[str | Path | None]) -> None:
    """Append what mpirun said to a file in each folder that is here."""
    for folder in folders:
        if messages and folder is not None and os.path.isdir(folder):
            with contextlib.suppress(OSError):
                descriptor = open_log(Path(folder, _MESSAGES), append=True)
                with os.fdopen(descriptor, "ab") as file:
                    file.write(messages)
