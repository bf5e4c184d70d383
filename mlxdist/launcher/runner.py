"""Starts a job's ranks with mpirun, on this machine or several; tells how it ended."""

from __future__ import annotations

import contextlib
import importlib.machinery
import importlib.util
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from . import network as interfaces
from . import openmpi, rank_main
from .command import (
    has_own_agent,
    mpirun_command,
    passed_on,
    printed,
    rank_environment,
    write_agent,
)
from .hosts import Host, place
from .mpirun import Mpirun, kill_survivors
from .outcome import Outcome
from .output import Output
from .rank_main import usable_cores
from .spec import Job as Job

TIMED_OUT = 124  # as of timeout(1)


class Stopped(int):
    """The exit code of a job that its user ended."""


def launch(job: Job, *, again: bool = False) -> int:
    """Runs the job and returns its exit code: 0 only where every rank said it finished.

    Otherwise it is mpirun's own, 1 where mpirun claims success, 124 where its time ran
    out, or 128 + the signal that ended the job (130 after Ctrl-C).

    Args:
        again: whether it failed before; its log files go on.

    Raises:
        ValueError: there is no such script or module, or not enough slots.
        RuntimeError: there is no Open MPI, with the remedy.
    """
    places = place(job.hosts, job.ranks) if job.hosts else ()
    job = _checked(job)
    with tempfile.TemporaryDirectory(
        prefix="mlxdist-run-", ignore_cleanup_errors=True
    ) as run_dir:
        word = os.urandom(8).hex() if job.hosts else ""
        command, environment = prepare(job, run_dir=run_dir, word=word)
        output = Output(
            run_dir,
            ranks=job.ranks,
            word=word,
            label=job.label,
            log_dir=job.log_dir,
            again=again,
        )
        mpirun = Mpirun(
            command,
            environment,
            run_dir=run_dir,
            ranks=job.ranks,
            output=output,
            timeout=job.timeout,
        )
        code = mpirun.wait()
        outcome = Outcome.read(
            run_dir,
            job.ranks,
            places,
            output.clues,
            lost=lost_hosts(output, run_dir),
            by_user=mpirun.received is not None,
        )
        kill_survivors(run_dir, outcome.missing)
    return _verdict(job, code, mpirun, outcome)


def dry_run(job: Job) -> str:
    """The command line that `launch` would run, for a shell, but for its bookkeeping.

    Raises:
        ValueError, RuntimeError: as `launch`.
    """
    if job.hosts:
        place(job.hosts, job.ranks)
    command, environment = prepare(_checked(job))
    return printed(command, environment)


def prepare(
    job: Job, *, run_dir: str = "", word: str = ""
) -> tuple[list[str], dict[str, str]]:
    """mpirun's command line and environment, for this machine and terminal."""
    cores = usable_cores()
    environment = rank_environment(
        job,
        os.environ,
        cores=cores,
        run_dir="" if job.hosts else run_dir,
        word=word,
        columns=_columns(job),
    )
    command = mpirun_command(
        job,
        mpirun=openmpi.find_mpirun(),
        python=job.python or sys.executable,
        cores=cores,
        as_root=os.geteuid() == 0,
        reads=sys.stdin is not None and sys.stdin.isatty(),
        passed_on=passed_on(job, environment),
        agent=write_agent(job, run_dir) if job.hosts and run_dir else None,
        session=run_dir,
    )
    return command, environment


def lost_hosts(output: Output, run_dir: str) -> list[str]:
    """Hosts that mpirun says it lost, or else the one whose ssh ended first."""
    notes = Path(run_dir, "lost")
    if output.clues.lost or not notes.exists():
        return output.clues.lost
    return notes.read_text().split()[:1]


def _checked(job: Job) -> Job:
    """The job, with its interpreter and its network found, and its files possible."""
    if job.log_dir is not None:
        check_writable("--log-dir", job.log_dir)
    python = None
    if job.python is not None:
        python = find_python(job.python, elsewhere=bool(job.hosts))
    if not job.hosts:  # others may have what this machine has not
        check_script(job)
        if job.timeline is not None:
            if job.timeline.is_dir():
                raise ValueError(f"--timeline {job.timeline} is a folder; name a file")
            check_writable("--timeline", job.timeline.parent)
        cores = usable_cores()
        if job.ranks > cores:
            print(rank_main.too_many(job.ranks, cores), file=sys.stderr, flush=True)
        return replace(job, python=python)
    _check_ssh(job)
    return replace(job, python=python, interface=network_for(job.hosts, job.interface))


def _check_ssh(job: Job) -> None:
    """Raises RuntimeError where other hosts can't be reached: there is no ssh here."""
    if has_own_agent(job) or shutil.which("ssh") is not None:
        return
    own = {str(one.address.ip) for one in interfaces.here()}
    others = [host.name for host in job.hosts if not is_here(host, own)]
    if others:
        raise RuntimeError(
            f"no ssh is on the PATH, by which mpirun reaches {others[0]}; install it "
            "(apt install openssh-client), or add its folder to the PATH"
        )


def find_python(given: str, *, elsewhere: bool) -> str:
    """The path of the interpreter that `--python` names.

    Raises:
        ValueError: there is none here; where `elsewhere`, only a mere name needs it.
    """
    python = shutil.which(given) if os.sep not in given else given
    runs = python is not None and os.path.isfile(python) and os.access(python, os.X_OK)
    if python is None or not (elsewhere or runs):
        raise ValueError(f"--python {given!r}: there is no such program here")
    return os.path.abspath(python)


def network_for(hosts: Sequence[Host], asked: str | None) -> str | None:
    """The network for MPI's traffic: the one asked for, or the best with all hosts.

    A network is the same on all hosts, where an interface's name may not be.
    """
    if asked is not None:
        return interfaces.network_of(asked)
    own = interfaces.here()
    mine = {str(one.address.ip) for one in own}
    known = [host.addresses or addresses_of(host) for host in hosts]
    others = [
        one
        for one in known
        if not mine & set(one) and not any(a.startswith("127.") for a in one)
    ]
    chosen = interfaces.choose(own, others)
    return None if chosen is None else chosen.network


def addresses_of(host: Host) -> tuple[str, ...]:
    """The IPv4 addresses of a host's name; none where it is unknown here."""
    with contextlib.suppress(OSError):
        found = socket.getaddrinfo(host.name, None, socket.AF_INET)
        return tuple(dict.fromkeys(str(one[4][0]) for one in found))
    return ()


def is_here(host: Host, own: set[str]) -> bool:
    """Whether a host is this machine, by its address: names may be equal by mistake."""
    addresses = addresses_of(host)
    return any(one in own or one.startswith("127.") for one in addresses)


def check_writable(option: str, folder: Path) -> None:
    """Raises ValueError where no file can be made in a folder, which may be a new one.

    Leaves nothing behind.
    """
    there = next(x for x in (folder, *folder.parents) if os.path.exists(x))
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise ValueError(
            f"{option} {folder}: no file can be made in {there}: {error.strerror}; "
            "wanted a folder, which is made where there is none"
        ) from None


def check_script(job: Job) -> None:
    """Raises ValueError where there is nothing to run, before anything is started."""
    if not os.path.isdir(job.folder):
        raise ValueError(f"--cwd {job.cwd!r}: there is no such folder")
    if job.module:
        _check_module(job.script, job.folder)
        return
    path = Path(job.folder, job.script)
    if not path.exists():
        raise ValueError(
            f"there is no script {job.script!r} in {job.folder}; "
            "to run a module by its name, use -m"
        )
    if path.is_dir() and not (path / "__main__.py").exists():
        raise ValueError(f"{job.script!r} is a folder without a __main__.py")


def _check_module(name: str, folder: str) -> None:
    top = name.partition(".")[0]
    if not top.isidentifier():
        raise ValueError(f"found -m {name!r}, wanted the name of a module")
    here = importlib.machinery.PathFinder.find_spec(top, [folder])
    if here is None and importlib.util.find_spec(top) is None:
        raise ValueError(f"no module {top!r} in {folder} or on Python's path")


def _columns(job: Job) -> int | None:
    # A live display redraws its lines, which can't be where each has a label or a file.
    if job.label or job.log_dir or not sys.stdout.isatty():
        return None
    return shutil.get_terminal_size().columns


def _verdict(job: Job, code: int, mpirun: Mpirun, outcome: Outcome) -> int:
    how = f"mpirun exited with code {code}"
    if code > 128 and code - 128 in {number.value for number in signal.Signals}:
        how += f" ({signal.Signals(code - 128).name})"
    if code < 0:
        how, code = f"mpirun was ended by {signal.Signals(-code).name}", 128 - code
    if mpirun.timed_out:
        _say(f"ended after --timeout {job.timeout:g} s; {outcome}.")
        return TIMED_OUT
    if mpirun.received is not None:
        _say(f"ended by {signal.Signals(mpirun.received).name}; {outcome}.")
        return Stopped(128 + mpirun.received)
    if mpirun.held and not outcome.missing:
        _say(f"{outcome}; a process that one of them started still ran, and goes on.")
        return 0
    if outcome.missing or code:
        _say(f"{outcome}; {how}.{_hint(job.hosts, outcome)}")
    return code or int(bool(outcome.missing))


def _hint(hosts: Sequence[Host], outcome: Outcome) -> str:
    """Where no rank said anything, the machines themselves may be at fault."""
    told = outcome.reasons or outcome.killed
    if not hosts or told or len(outcome.missing) < outcome.ranks:
        return ""
    listed = ",".join(map(str, hosts))
    return f"\n`mlxdist doctor -H {listed}` tells what is wrong with the hosts."


def _say(message: str) -> None:
    print(f"mlxdist run: {message}", file=sys.stderr, flush=True)
