"""Interleaved measurements of contenders that cannot share a process.

Some settings of a process cannot be undone: the options of its allocator, who started
MPI, the threads of PyTorch. Each contender is therefore a job by itself, which lives
as long as the benchmark. Its ranks block in a read of a Unix socket until the benchmark
sends a request, so that the other jobs have the machine to themselves.

This module is the side of the benchmark; `ranks.protocol` has the side of the ranks.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from ranks.protocol import (
    JOB_VARIABLE,
    SOCKET_VARIABLE,
    Connection,
    Message,
    receive_all,
)

from mlxdist.launcher import openmpi
from mlxdist.launcher.environment import without_mpi

from .environment import BENCHMARKS, ROOT

START_TIMEOUT = 90.0  # seconds until all ranks of all jobs have connected
EXIT_TIMEOUT = 10.0  # seconds for a job to exit after its connections are closed
# The variables that the ranks need; mpirun has to forward them to other hosts.
FORWARDED = (SOCKET_VARIABLE, JOB_VARIABLE, "PYTHONPATH", "OMP_NUM_THREADS")


@dataclass(frozen=True)
class Job:
    """The commands that start the ranks of a job: one mpirun, or one for each rank.

    One job serves one contender, or several that can share a process. `checkout` is
    the source tree whose mlxdist the ranks import.
    """

    name: str
    ranks: int
    commands: Sequence[Sequence[str]]
    environment: Mapping[str, str] = field(default_factory=dict)
    checkout: Path = ROOT


def mpi_job(
    name: str,
    ranks: int,
    script: Path,
    *arguments: str,
    cluster: Any = None,
    checkout: Path = ROOT,
    environment: Mapping[str, str] | None = None,
) -> Job:
    """Return a job whose ranks mpirun starts, with one thread each.

    Args:
        arguments: of the script.
        cluster: the VirtualCluster to run on, one rank per host; None: this machine.
        checkout: the source tree whose mlxdist the ranks import.
        environment: variables of all ranks.
    """
    program = [sys.executable, os.fspath(script), *arguments]
    if cluster is not None:
        names = (*FORWARDED, *(environment or {}))
        exports = [word for name in names for word in ("-x", name)]
        command = cluster.mpirun(ranks, program, arguments=exports)
    else:
        command = [*mpirun(ranks), *program]
    return Job(name, ranks, [command], environment or {}, checkout)


def mpirun(ranks: int) -> list[str]:
    """Return the mpirun command, without a program, for ranks on this machine."""
    command = [openmpi.find_mpirun(), "-n", str(ranks), "--host", f"localhost:{ranks}"]
    command += ["--bind-to", "none", "--stdin", "none"]
    command += ["--mca", "mpi_yield_when_idle", "1"] * (ranks > (os.cpu_count() or 1))
    return command + ["--allow-run-as-root"] * (os.geteuid() == 0)


def upstream_environment() -> dict[str, str]:
    """Return what MLX needs to find MPI without mlxdist."""
    return {"MLX_MPI_LIBNAME": openmpi.find_libmpi() or ""}


@contextmanager
def running(jobs: Sequence[Job], *, timeout: float = 300.0) -> Iterator[RunningJobs]:
    """Start all jobs, and end them when the block ends.

    Args:
        timeout: seconds for a job to answer one request.

    Raises:
        RuntimeError: a job failed or timed out; the message has the end of its output.
    """
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:  # exit as Ctrl-C does
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    started = RunningJobs(jobs, timeout)
    try:
        started.connect()
        yield started
    finally:
        started.end()


class RunningJobs:
    """The jobs of a benchmark while they run; made by `running`."""

    def __init__(self, jobs: Sequence[Job], timeout: float):
        self.jobs = {job.name: job for job in jobs}
        self.timeout = timeout
        self._folder = Path(tempfile.mkdtemp(prefix="mlxdist-bench-"))
        self._processes: dict[str, list[subprocess.Popen[bytes]]] = {}
        self._connections: dict[str, dict[int, Connection]] = {}

    def request(self, job: str, **request: Any) -> list[Message]:
        """Send a request to all ranks of a job and return their replies, by rank."""
        connections = self._connections[job]
        try:
            for connection in connections.values():
                connection.send(request)
            replies = receive_all(connections, time.monotonic() + self.timeout)
        except (OSError, EOFError) as error:
            self._fail(job, error)
        return [replies[rank] for rank in sorted(replies)]

    def connect(self) -> None:
        """Start the processes and wait until all ranks have connected."""
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(os.fspath(self._folder / "s"))
            listener.listen(sum(job.ranks for job in self.jobs.values()))
            for job in self.jobs.values():
                self._processes[job.name] = self._start(job)
            self._accept_all(listener)

    def end(self) -> None:
        """Close all connections and end the processes: all of each job's session."""
        for connections in self._connections.values():
            for connection in connections.values():
                connection.close()
        processes = [one for each in self._processes.values() for one in each]
        deadline = time.monotonic() + EXIT_TIMEOUT
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, deadline - time.monotonic()))
        for number in (signal.SIGTERM, signal.SIGKILL):
            for process in processes:
                _signal_group(process, number)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self, job: Job) -> list[subprocess.Popen[bytes]]:
        environment = {**without_mpi(os.environ), "OMP_NUM_THREADS": "1"}
        inherited = environment.get("PYTHONPATH", "")
        folders = [os.fspath(job.checkout), os.fspath(BENCHMARKS), inherited]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, folders))
        environment[SOCKET_VARIABLE] = os.fspath(self._folder / "s")
        environment[JOB_VARIABLE] = job.name
        # In the default folder, files that a killed mpirun left can stop a new one.
        environment["PRTE_MCA_prte_local_tmpdir_base"] = os.fspath(self._folder)
        with self._log(job.name).open("wb") as log:
            return [
                subprocess.Popen(
                    command,
                    env={**environment, **job.environment},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
                for command in job.commands
            ]

    def _accept_all(self, listener: socket.socket) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        listener.settimeout(0.2)
        missing = {job.name: job.ranks for job in self.jobs.values()}
        while any(missing.values()):
            try:
                connection = Connection(listener.accept()[0])
            except TimeoutError:
                self._check_alive(missing, deadline)
                continue
            hello = connection.receive(deadline)
            self._connections.setdefault(hello["job"], {})[hello["rank"]] = connection
            missing[hello["job"]] -= 1

    def _check_alive(self, missing: Mapping[str, int], deadline: float) -> None:
        for name, count in missing.items():
            if count and self._has_ended(name):
                self._fail(name, EOFError("it ended before its first request"))
            if count and time.monotonic() > deadline:
                self._fail(name, TimeoutError(f"no start in {START_TIMEOUT:.0f} s"))

    def _has_ended(self, job: str) -> bool:
        """Return whether a process of a job has failed."""
        return any(process.poll() for process in self._processes[job])

    def _log(self, job: str) -> Path:
        return self._folder / f"{list(self.jobs).index(job)}.log"

    def _fail(self, job: str, error: Exception) -> NoReturn:
        deadline = time.monotonic() + 2  # its traceback is written as it exits
        while time.monotonic() < deadline and not self._has_ended(job):
            time.sleep(0.05)
        output = self._log(job).read_text(errors="replace").strip()
        raise RuntimeError(f"{job}: {error}\n{output[-3000:]}") from error


def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    if process.poll() is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(5)
