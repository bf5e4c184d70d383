"""mpirun as a child process: signals, the time limit, and ranks that outlive it."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import FrameType

from . import marks
from .output import Output

Handler = Callable[[int, FrameType | None], object] | int | signal.Handlers | None

FINISH_TIMEOUT = 60.0  # seconds for MPI to end once every rank has finished
_TERMINAL_DELAY = 1.0  # seconds for a terminal's own Ctrl-C signal to end mpirun
_STOP_TIMEOUT = 10.0  # seconds for mpirun to end its ranks
_POLL_INTERVAL = 0.1  # seconds


class Mpirun:
    """A running mpirun. It passes on signals that end a program, until `wait` returns.

    Args:
        command: mpirun's path and arguments.
        environment: that of mpirun, and of the ranks on this machine.
        run_dir: folder of the ranks' marks.
        ranks: the number of ranks.
        output: copies what the job prints.
        timeout: seconds after which the job is ended.

    Attributes:
        received: the first signal that this process got to end the job.
        timed_out: whether the time limit ended the job.
        has_leftover: whether mpirun waited for a process that a finished rank started.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        run_dir: str,
        ranks: int,
        output: Output,
        timeout: float | None = None,
    ) -> None:
        self.received: int | None = None
        self.timed_out = False
        self.has_leftover = False
        self.timeout = timeout
        self._run_dir, self._ranks, self._output = run_dir, ranks, output
        self._received_at = 0.0
        self._passed_on = False
        self._kill_now = False
        self._deadline = time.monotonic() + (timeout or float("inf"))
        self._handlers = _install(self._on_signal)
        out, err = (subprocess.PIPE if piped else None for piped in output.piped)
        try:
            # In this process group, so that rank 0 can read from the terminal.
            self._process = subprocess.Popen(
                command, env=environment, stdout=out, stderr=err
            )
        except OSError:
            _restore(self._handlers)
            raise
        # Popen.wait(timeout) polls every 50 ms. An event returns at once.
        self._exited = threading.Event()
        threading.Thread(target=self._await_exit, daemon=True).start()
        streams = (self._process.stdout, 1), (self._process.stderr, 2)
        self._copies = [output.copy(source, to) for source, to in streams if source]

    def wait(self) -> int:
        """Return mpirun's exit code; a signal's negative number if one ended it."""
        finished_at = None
        try:
            while not self._exited.wait(timeout=_POLL_INTERVAL):
                self._check_time_limit()
                self._pass_on_signal()
                if finished_at is None and not marks.unfinished(
                    self._run_dir, self._ranks
                ):
                    finished_at = time.monotonic()
                if finished_at and time.monotonic() - finished_at > FINISH_TIMEOUT:
                    self.has_leftover = True
                    self._process.kill()
            return self._process.returncode
        finally:
            for thread in self._copies:
                thread.join(timeout=5)
            self._output.close()
            _restore(self._handlers)

    def _await_exit(self) -> None:
        self._process.wait()
        self._exited.set()

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self.received is None:
            self.received, self._received_at = number, time.monotonic()
        else:
            self._kill_now = True

    def _check_time_limit(self) -> None:
        if self.received is None and time.monotonic() > self._deadline:
            self.timed_out = True
            self._on_signal(signal.SIGTERM, None)

    def _pass_on_signal(self) -> None:
        if self.received is None:
            return
        waited = time.monotonic() - self._received_at
        if self._kill_now or waited > _STOP_TIMEOUT:
            self._process.kill()
        # Ctrl-C in a terminal reaches mpirun as well. A second signal would make it
        # exit at once, before its ranks have ended.
        elif self.received == signal.SIGTERM or waited > _TERMINAL_DELAY:
            if not self._passed_on:
                self._process.terminate()
            self._passed_on = True


def kill_survivors(run_dir: str, ranks: Sequence[int]) -> None:
    """Kill ranks that outlived mpirun, as they do if mpirun itself was killed."""
    for rank in ranks:
        try:
            with marks.pid_file(run_dir, rank).open("r+") as file:
                pid = int(file.read())
                try:
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:  # the rank holds the lock, so the id is still valid
                    os.kill(pid, signal.SIGKILL)
        except (OSError, ValueError):  # it never started, or is gone by now
            continue


def _install(handler: Handler) -> dict[int, Handler]:
    """Handle the signals that end a program; return the former handlers.

    An ignored signal stays ignored, as with nohup and in the background of a script.
    """
    return {
        number: signal.signal(number, handler)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is not signal.SIG_IGN
    }


def _restore(handlers: Mapping[int, Handler]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
