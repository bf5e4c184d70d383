"""Watcher: ends a job whose `mlxdist run` was killed, and removes its folder.

SIGKILL gives `mlxdist run` no chance to end mpirun, and mpirun goes on without it. So
`mlxdist run` starts this file as a process of its own, in a session of its own, with a
pipe to it. The kernel closes the pipe when `mlxdist run` is gone, on any system.

It is started by its path: standard library only, and no relative imports.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

_STOP_TIMEOUT = 10.0  # seconds for mpirun to end its ranks
_KILL_TIMEOUT = 5.0
_POLL_INTERVAL = 0.05
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108


class Watcher:
    """A process that ends the job in a folder once this process is gone.

    Args:
        run_dir: folder of the ranks' process ids and of mpirun's files.
    """

    def __init__(self, run_dir: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", os.path.abspath(__file__), run_dir],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
            bufsize=0,
        )

    def watch(self, mpirun: int) -> None:
        """Set the process id of the job's mpirun."""
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):  # it was killed
                self._process.stdin.write(str(mpirun).encode())

    def stop(self) -> None:
        self._process.kill()
        self._process.communicate()


def segment_folder(run_dir: str) -> str:
    """Return the folder for the shared memory of a job's ranks on this machine."""
    return str(_SHARED_MEMORY / os.path.basename(run_dir))


def end_ranks(run_dir: str) -> None:
    """Kill the ranks that outlived mpirun, and remove their folders.

    A rank that starts only now finds no folder for its process id, and exits.
    """
    # A name that can't be guessed: another user could put process ids there first.
    ended = f"{run_dir}.{os.urandom(8).hex()}"
    with contextlib.suppress(OSError):
        os.rename(run_dir, ended)
    for path in Path(ended).glob("rank-*.pid"):
        _kill_owner(path)
    shutil.rmtree(ended, ignore_errors=True)
    shutil.rmtree(segment_folder(run_dir), ignore_errors=True)


def _kill_owner(path: Path) -> None:
    """Kill the rank that holds the lock of a file with its process id."""
    try:
        with path.open("r+") as file:
            pid = int(file.read())
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:  # it is locked, so the id is still valid
                is_leader = os.getpgid(pid) == pid  # of its own child processes
                os.kill(-pid if is_leader else pid, signal.SIGKILL)
    except (OSError, ValueError):  # it never started, or is gone by now
        pass


def _end_mpirun(pid: int) -> None:
    for number, seconds in (
        (signal.SIGTERM, _STOP_TIMEOUT),
        (signal.SIGKILL, _KILL_TIMEOUT),
    ):
        deadline = time.monotonic() + seconds
        try:
            os.kill(pid, number)
            os.kill(pid, signal.SIGCONT)  # a stopped process takes no other signal
            while time.monotonic() < deadline:
                os.kill(pid, 0)
                time.sleep(_POLL_INTERVAL)
        except ProcessLookupError:
            return


def main(run_dir: str) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    pid = int(sys.stdin.buffer.read() or 0)  # until `mlxdist run` is gone
    if pid:
        _end_mpirun(pid)
    end_ranks(run_dir)


if __name__ == "__main__":
    main(sys.argv[1])
