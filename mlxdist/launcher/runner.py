"""Run a job with mpirun, and determine its outcome."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace

from . import environment, marks, mpirun_command, openmpi, preflight
from .cores import usable_cores
from .hosts import assign_ranks
from .job_spec import Job
from .mark_filter import MarkFilter
from .mpirun import Mpirun, kill_survivors
from .mpirun_log import MpirunLog
from .outcome import Outcome, RankOutcome, describe, read_ranks, signal_name
from .output import Output, open_logs

TIMED_OUT = 124  # the exit code of timeout(1)


def launch(job: Job, *, max_restarts: int = 0) -> Outcome:
    """Run a job to its end, and again if it fails, up to `max_restarts` times.

    A job that the user ends is not started again. The ranks of a later start find
    `world.restarts` above 0, and log files are appended to.

    Returns:
        The outcome of the last start. Its `exit_code` is 0 only if every rank finished.
        Otherwise it is mpirun's own, 1 if mpirun returned 0, 124 after the time limit,
        or 128 + the number of the signal that ended the job (130 after Ctrl-C).

    Raises:
        ValueError: there is no such script or module, or there are too few slots.
        RuntimeError: there is no Open MPI or no ssh; the message has the remedy.
    """
    started = time.monotonic()
    restarts = 0
    while True:
        environment.set_restarts(restarts)
        outcome = _launch_once(job, append_logs=restarts > 0)
        succeeded = outcome.exit_code == 0
        if succeeded or outcome.stopped_by is not None or restarts == max_restarts:
            seconds = time.monotonic() - started
            return replace(outcome, restarts=restarts, seconds=seconds)
        restarts += 1
        _print(f"starts it again, {restarts} of {max_restarts}.")


def dry_run(job: Job) -> str:
    """Return the command line that `launch` would run, for a shell, without marks.

    Raises:
        ValueError, RuntimeError: as `launch`.
    """
    return mpirun_command.shell_line(*prepare(preflight.check(job)))


def prepare(
    job: Job, *, run_dir: str = "", token: str = ""
) -> tuple[list[str], dict[str, str]]:
    """Return mpirun's command line and environment, for this machine and terminal.

    Args:
        run_dir: folder for the ranks' marks and mpirun's files; "" for none.
        token: of the ranks' marks on standard error, over several hosts.
    """
    cores = usable_cores()
    variables = mpirun_command.rank_environment(
        job,
        environment.snapshot(),
        usable_cores=cores,
        run_dir="" if job.hosts else run_dir,
        token=token,
        columns=_terminal_columns(job),
    )
    over_hosts = bool(job.hosts and run_dir)
    arguments = mpirun_command.mpirun_command(
        job,
        mpirun=openmpi.find_mpirun(),
        python=job.python or sys.executable,
        usable_cores=cores,
        as_root=os.geteuid() == 0,
        forward_stdin=sys.stdin is not None and sys.stdin.isatty(),
        forwarded=mpirun_command.forwarded_variables(job, variables),
        agent=mpirun_command.write_agent_script(job, run_dir) if over_hosts else None,
        session_dir=run_dir,
    )
    return arguments, variables


def _launch_once(job: Job, *, append_logs: bool) -> Outcome:
    job = preflight.check(job)
    with tempfile.TemporaryDirectory(
        prefix="mlxdist-run-", ignore_cleanup_errors=True
    ) as run_dir:
        token = os.urandom(8).hex() if job.hosts else ""
        arguments, variables = prepare(job, run_dir=run_dir, token=token)
        output = Output(
            label=job.label,
            logs=open_logs(job.log_dir, job.ranks, append=append_logs),
            mark_filter=MarkFilter(run_dir, ranks=job.ranks, token=token)
            if token
            else None,
        )
        mpirun = Mpirun(
            arguments,
            variables,
            run_dir=run_dir,
            ranks=job.ranks,
            output=output,
            timeout=job.timeout,
        )
        code = mpirun.wait()
        lost_hosts = output.log.lost_hosts or mpirun_command.failed_hosts(run_dir)[:1]
        ranks = read_ranks(
            run_dir,
            job.ranks,
            assign_ranks(job.hosts, job.ranks) if job.hosts else (),
            log=output.log,
            lost_hosts=lost_hosts,
            stopped=mpirun.received is not None,
        )
        kill_survivors(run_dir, marks.unfinished(run_dir, job.ranks))
    outcome = _conclude(mpirun, code, ranks, lost_hosts)
    if outcome.message:
        _print(outcome.message + _hint(job, outcome, output.log))
    return outcome


def _conclude(
    mpirun: Mpirun, code: int, ranks: tuple[RankOutcome, ...], lost_hosts: Sequence[str]
) -> Outcome:
    """Return the outcome, with the exit code of `mlxdist run` and its last message."""
    outcome = Outcome(code, ranks, lost_hosts=tuple(lost_hosts))
    summary = describe(ranks, lost_hosts)
    if mpirun.timed_out:
        message = f"ended after --timeout {mpirun.timeout:g} s; {summary}."
        return replace(outcome, exit_code=TIMED_OUT, message=message, timed_out=True)
    if mpirun.received is not None:
        name = signal_name(mpirun.received)
        return replace(
            outcome,
            exit_code=128 + mpirun.received,
            message=f"ended by {name}; {summary}.",
            stopped_by=name,
        )
    finished = all(rank.state == "finished" for rank in ranks)
    if finished and mpirun.has_leftover:
        message = f"{summary}; a process that one of them started still runs."
        return replace(outcome, exit_code=0, message=message)
    if finished and code == 0:
        return outcome
    exit_code = (128 - code if code < 0 else code) or 1
    message = f"{summary}; {_describe_code(code)}."
    return replace(outcome, exit_code=exit_code, message=message)


def _describe_code(code: int) -> str:
    if code < 0:
        return f"mpirun was ended by {signal_name(-code)}"
    name = signal_name(code - 128)
    return f"mpirun exited with code {code}" + (f" ({name})" if name else "")


def _hint(job: Job, outcome: Outcome, log: MpirunLog) -> str:
    """Return a pointer to `mlxdist doctor` if nothing tells why no rank finished."""
    ended = outcome.timed_out or outcome.stopped_by is not None
    known = log.killed or any(
        rank.state in ("finished", "failed") for rank in outcome.ranks
    )
    if not job.hosts or ended or known:
        return ""
    hosts = ",".join(map(str, job.hosts))
    return f"\n`mlxdist doctor -H {hosts}` finds out what is wrong with the hosts."


def _terminal_columns(job: Job) -> int | None:
    # A live display redraws lines, which is impossible once they have labels or go to
    # files.
    if job.label or job.log_dir or not sys.stdout.isatty():
        return None
    return shutil.get_terminal_size().columns


def _print(message: str) -> None:
    print(f"mlxdist run: {message}", file=sys.stderr, flush=True)
