"""Real mpirun jobs for serial tests. At its timeout a job ends with all it started."""

import atexit
import contextlib
import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import mlxdist
from mlxdist.launcher import openmpi
from mlxdist.launcher.environment import without_mpi

ROOT = Path(mlxdist.__file__).resolve().parents[1]
LAUNCH = ROOT / "launch"


def mpi_job(n, script, *arguments, folder, env=None, timeout=60.0):
    """Runs a Python script on n ranks with mpirun itself.

    Args:
        script: a Path, or the source text of a script, which is put into `folder`.
        env: variables on top of the environment of a clean shell.
        timeout: seconds until every process of the job is killed.

    Returns:
        A CompletedProcess with the text of stdout and stderr.

    Raises:
        subprocess.TimeoutExpired: with the output until then.
    """
    if not isinstance(script, Path):
        path = Path(folder, "job.py")
        path.write_text(script)
        script = path
    command = [*mpirun(n), sys.executable, str(script), *map(str, arguments)]
    return run(command, env=env, timeout=timeout, cwd=folder)


def mpirun(n, session=None):
    """The beginning of a command that starts n ranks on this machine.

    `session` is a folder for mpirun's own files; in the common one, those that a killed
    mpirun left would end a later one with the same process id.
    """
    command = [openmpi.find_mpirun(), "-n", str(n), "--host", f"localhost:{n}"]
    command += ["--stdin", "none", "--bind-to", "none"]
    command += ["--mca", "mpi_yield_when_idle", "1"]
    session = session or tempfile.mkdtemp(prefix="mpirun-", dir=sessions())
    command += ["--prtemca", "prte_local_tmpdir_base", session]
    return command + ["--allow-run-as-root"] * (os.geteuid() == 0)


@functools.cache
def sessions():
    folder = tempfile.mkdtemp(prefix="mlxdist-tests-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def clean_environment(env=None):
    """What a user's shell has, with this package on Python's path."""
    clean = without_mpi(os.environ)
    clean.pop("MLX_MPI_LIBNAME", None)  # a test of this process may have set it
    path = [str(ROOT), clean.get("PYTHONPATH")]
    clean["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    clean["OMP_NUM_THREADS"] = "1"
    return {**clean, **(env or {})}


def run(command, *, env=None, timeout=60.0, cwd=None):
    """`subprocess.run` that leaves nothing behind at its timeout."""
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


def start(command, *, env=None, cwd=None):
    """The process, in a session of its own, with its output in pipes."""
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


def end_session(leader):
    """Kills a session's processes: ranks are in process groups of their own."""
    for pid in processes(leader):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def processes(leader):
    """The live processes of a session."""
    listed = subprocess.run(
        ["ps", "-A", "-o", "pid=,stat="], capture_output=True, text=True, check=True
    )
    found = []
    for line in listed.stdout.splitlines():
        pid, state = line.split()[:2]
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if not state.startswith("Z") and os.getsid(int(pid)) == leader:
                found.append(int(pid))
    return found
