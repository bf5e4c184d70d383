"""Real mpirun jobs for tests that run without mpirun themselves.

At its timeout a job is killed with every process that it started.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import mlxdist
from mlxdist.launcher import openmpi
from mlxdist.launcher.environment import without_mpi

ROOT = Path(mlxdist.__file__).resolve().parents[1]
LAUNCH = ROOT / "launch"
MLXDIST_RUN = [sys.executable, "-m", "mlxdist.cli", "run"]


def mpi_job(
    n: int,
    script: Path | str,
    *arguments: object,
    folder: Path,
    env: Mapping[str, str] | None = None,
    timeout: float = 100.0,
) -> subprocess.CompletedProcess[str]:
    """Run a Python script on n ranks with mpirun, without `mlxdist run`.

    Args:
        script: a Path, or the source of a script, which is written to `folder`.
        folder: the working directory of the ranks.
        env: variables added to a clean environment.
        timeout: seconds until every process of the job is killed.

    Raises:
        subprocess.TimeoutExpired: with the output until then.
    """
    if not isinstance(script, Path):
        path = Path(folder, "job.py")
        path.write_text(script)
        script = path
    command = [*mpirun(n), sys.executable, str(script), *map(str, arguments)]
    return run(command, env=env, timeout=timeout, cwd=folder)


def mpirun(n: int, session: str | None = None) -> list[str]:
    """Return the first words of a command that starts n ranks on this machine.

    Args:
        session: folder for mpirun's own files, a new one by default. In the folder that
            all users share, files left by a killed mpirun would end a later one that
            has the same process id.
    """
    command = [openmpi.find_mpirun(), "-n", str(n), "--host", f"localhost:{n}"]
    command += ["--stdin", "none", "--bind-to", "none"]
    command += ["--mca", "mpi_yield_when_idle", "1"]
    session = session or tempfile.mkdtemp(prefix="mpirun-", dir=_sessions_folder())
    command += ["--prtemca", "prte_local_tmpdir_base", session]
    return command + ["--allow-run-as-root"] * (os.geteuid() == 0)


@functools.cache
def _sessions_folder() -> str:
    folder = tempfile.mkdtemp(prefix="mlxdist-tests-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def clean_environment(env: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return a user's environment, with this package on Python's path, and `env`."""
    clean = without_mpi(os.environ)
    clean.pop("MLX_MPI_LIBNAME", None)  # set if this process has called init()
    path = [str(ROOT), clean.get("PYTHONPATH")]
    clean["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    clean["OMP_NUM_THREADS"] = "1"
    return {**clean, **(env or {})}


def run(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    timeout: float = 100.0,
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command; at its timeout, kill it and every process that it started."""
    with start(command, env=env, cwd=cwd) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            end_session(process.pid)
            out, err = process.communicate()
            raise subprocess.TimeoutExpired(command, timeout, out, err) from None
        except BaseException:
            end_session(process.pid)
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def start(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> subprocess.Popen[str]:
    """Start a command in a new session, with its output in pipes."""
    return subprocess.Popen(
        command,
        env=clean_environment(env),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )


def end_session(leader: int) -> None:
    """Kill the processes of a session. The ranks of a job share no process group."""
    for pid in processes(leader):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def processes(leader: int) -> list[int]:
    """Return the ids of the live processes in a session."""
    result = subprocess.run(
        ["ps", "-A", "-o", "pid=,stat="], capture_output=True, text=True, check=True
    )
    pids = []
    for line in result.stdout.splitlines():
        pid, state = line.split()[:2]
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if not state.startswith("Z") and os.getsid(int(pid)) == leader:
                pids.append(int(pid))
    return pids


def state_of(pid: int) -> str:
    """Return the letter of a process's state, such as T; "" if there is none."""
    ps = ["ps", "-o", "stat=", "-p", str(pid)]
    result = subprocess.run(ps, capture_output=True, text=True, check=False)
    return result.stdout.strip()[:1]


def is_alive(pid: int) -> bool:
    """Return whether a process runs; a zombie does not."""
    return state_of(pid) not in ("", "Z")


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> bool:
    """Wait for a condition, at most some seconds. Return whether it holds."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()
