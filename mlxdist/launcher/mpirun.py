"""mpirun as a child process: its signals, its time, and what it leaves."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from . import rank_main
from .output import Output

_TERMINAL_PATIENCE = 1.0  # seconds until Ctrl-C's own signal has ended mpirun
_END_PATIENCE = 10.0  # seconds that mpirun gets to end its ranks
_FINISH_PATIENCE = 60.0  # seconds for MPI to end once every rank has finished


class Mpirun:
    """mpirun under way. Passes on the signals that end a program, until `wait` returns.

    Args:
        command: mpirun by its path, and its arguments.
        environment: that of mpirun, and so of the ranks on this machine.
        run_dir: where the ranks leave their marks, and `ranks` is how many there are.
        output: where what it writes goes.
        timeout: seconds after which the job is ended.
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
        self.received: int | None = None  # the first signal to end the job
        self.timed_out = False
        self.held = False  # by a process of a rank that had finished itself
        self._run_dir, self._ranks, self._output = run_dir, ranks, output
        self._asked_at = 0.0
        self._passed_on = False
        self._insist = False
        self._deadline = time.monotonic() + (timeout or float("inf"))
        self._signals = _catch(self._on_signal)
        out, err = (subprocess.PIPE if piped else None for piped in output.piped)
        try:
            # In this process group, so that rank 0 can read from the terminal.
            self._process = subprocess.Popen(
                command, env=environment, stdout=out, stderr=err
            )
        except OSError:
            _restore(self._signals)
            raise
        # Popen.wait(timeout) looks every 50 ms; this one returns at once.
        self._ended = threading.Event()
        threading.Thread(target=self._await_end, daemon=True).start()
        sources = (self._process.stdout, 1), (self._process.stderr, 2)
        self._copies = [output.copy(s, to) for s, to in sources if s is not None]

    def wait(self) -> int:
        """mpirun's exit code, negative where a signal ended it."""
        finished_at = None
        try:
            while (code := self._poll()) is None:
                self._end_if_late()
                self._end_if_asked()
                if finished_at is None and not unfinished(self._run_dir, self._ranks):
                    finished_at = time.monotonic()
                if finished_at and time.monotonic() - finished_at > _FINISH_PATIENCE:
                    self.held = True
                    self._process.kill()
            return code
        finally:
            for thread in self._copies:
                thread.join(timeout=5)
            self._output.close()
            _restore(self._signals)

    def _poll(self) -> int | None:
        if self._ended.wait(timeout=0.1):
            return self._process.returncode
        return None

    def _await_end(self) -> None:
        self._process.wait()
        self._ended.set()

    def _on_signal(self, number: int, _frame: object) -> None:
        if self.received is None:
            self.received, self._asked_at = number, time.monotonic()
        else:
            self._insist = True

    def _end_if_late(self) -> None:
        if self.received is None and time.monotonic() > self._deadline:
            self.timed_out = True
            self._on_signal(signal.SIGTERM, None)

    def _end_if_asked(self) -> None:
        if self.received is None:
            return
        waited = time.monotonic() - self._asked_at
        if self._insist or waited > _END_PATIENCE:
            self._process.kill()
        # Ctrl-C in a terminal reaches mpirun as well, which takes a second one amiss.
        elif self.received == signal.SIGTERM or waited > _TERMINAL_PATIENCE:
            if not self._passed_on:
                self._process.terminate()
            self._passed_on = True


def unfinished(run_dir: str, ranks: int) -> list[int]:
    """The ranks that did not say that they finished."""
    return [
        r for r in range(ranks) if not rank_main.mark_file(run_dir, "done", r).exists()
    ]


def kill_survivors(run_dir: str, ranks: Sequence[int]) -> None:
    """Ends ranks that outlived mpirun, as they do where it was killed itself."""
    for rank in ranks:
        try:
            with rank_main.pid_file(run_dir, rank).open("r+") as file:
                pid = int(file.read())
                try:
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:  # its owner lives, so the number is still its own
                    os.kill(pid, signal.SIGKILL)
        except (OSError, ValueError):  # never started, or gone by now
            continue


def _catch(handler: Any) -> dict[int, Any]:
    # What is ignored stays so: nohup, and jobs in the background of a script.
    return {
        number: signal.signal(number, handler)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is not signal.SIG_IGN
    }


def _restore(signals: Mapping[int, Any]) -> None:
    for number, handler in signals.items():
        signal.signal(number, handler)
