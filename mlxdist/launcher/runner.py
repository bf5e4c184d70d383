"""Run a job with mpirun, and determine its outcome."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace

from . import environment, failure, mpirun_command, openmpi, preflight, summary
from .cores import usable_cores
from .hosts import assign_ranks
from .job_spec import Job
from .mpirun import Mpirun
from .mpirun_log import MpirunLog
from .orphans import end_ranks, segment_folder
from .out_of_memory import OutOfMemory
from .outcome import Outcome, read_ranks
from .output import Output, open_logs
from .rank_failure import USAGE_ERROR
from .signals import Signals
from .standard_streams import print_error


def launch(job: Job, *, max_restarts: int = 0) -> Outcome:
    """Run a job to its end, and again if it fails, up to `max_restarts` times.

    A job that the user ends is not started again, nor one that ends with exit code 2: a
    wrong command line stays wrong. The ranks of a later start find `world.restarts`
    above 0, and log files are appended to.

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
    with Signals() as signals:
        while True:
            environment.set_restarts(restarts)
            outcome = _launch_once(job, signals, append_logs=restarts > 0)
            final = outcome.exit_code in (0, USAGE_ERROR)
            if final or outcome.stopped_by is not None or restarts == max_restarts:
                seconds = time.monotonic() - started
                return replace(outcome, restarts=restarts, seconds=seconds)
            restarts += 1
            print_error(f"mlxdist run: starts it again, {restarts} of {max_restarts}.")


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
        tag_output=bool(run_dir),
    )
    return arguments, variables


def _launch_once(job: Job, signals: Signals, *, append_logs: bool) -> Outcome:
    job = preflight.check(job)
    if job.timeline is not None and not job.hosts:
        job.timeline.unlink(missing_ok=True)  # of an earlier job
    with contextlib.ExitStack() as stack:
        run_dir = stack.enter_context(_run_folder())
        token = os.urandom(8).hex() if job.hosts else ""
        arguments, variables = prepare(job, run_dir=run_dir, token=token)
        logs = open_logs(job.log_dir, job.ranks, append=append_logs)
        for file in logs.values():
            stack.enter_context(file)
        memory = OutOfMemory(is_local=not job.hosts)
        output = Output(
            run_dir=run_dir, ranks=job.ranks, token=token, label=job.label, logs=logs
        )
        mpirun = Mpirun(
            arguments,
            variables,
            run_dir=run_dir,
            ranks=job.ranks,
            output=output,
            signals=signals,
            timeout=job.timeout,
        )
        outcome = _conclude(job, run_dir, mpirun, mpirun.wait(), signals, output)
        outcome = memory.explain(outcome)
        outcome = failure.report(run_dir, job, outcome, output)
    if outcome.message:
        output.end_line()
        print_error(f"mlxdist run: {outcome.message}{_hint(job, outcome, output.log)}")
    return outcome


def _conclude(
    job: Job,
    run_dir: str,
    mpirun: Mpirun,
    code: int,
    signals: Signals,
    output: Output,
) -> Outcome:
    lost_hosts = output.log.lost_hosts or mpirun_command.failed_hosts(run_dir)[:1]
    local = job.ranks * [socket.gethostname()]
    hosts = assign_ranks(job.hosts, job.ranks) if job.hosts else local
    ranks = read_ranks(
        run_dir,
        hosts,
        log=output.log,
        lost_hosts=lost_hosts,
        stopped=signals.received is not None or mpirun.timed_out,
    )
    return summary.conclude(
        code,
        ranks,
        lost_hosts=lost_hosts,
        name_hosts=bool(job.hosts),
        time_limit=mpirun.timeout if mpirun.timed_out else None,
        received=signals.received,
        has_leftover=mpirun.has_leftover,
        was_stopped=mpirun.was_stopped,
    )


@contextlib.contextmanager
def _run_folder() -> Iterator[str]:
    """Make a folder for a job, and end what is left of the job afterwards."""
    run_dir = tempfile.mkdtemp(prefix="mlxdist-run-")
    with contextlib.suppress(OSError):  # the ranks take /dev/shm itself then
        os.mkdir(segment_folder(run_dir), 0o700)
    try:
        yield run_dir
    finally:
        end_ranks(run_dir)


def _hint(job: Job, outcome: Outcome, log: MpirunLog) -> str:
    """Return a pointer to `mlxdist doctor` if nothing says why no rank finished."""
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
    if job.label or job.log_dir or sys.stdout is None or not sys.stdout.isatty():
        return None
    return shutil.get_terminal_size().columns
