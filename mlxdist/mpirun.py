"""mpirun as a child process: its signals, its labelled output, and what it leaves."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from typing import IO, Any

from . import rank_main

_TAG = re.compile(rb"\[\d+,(\d+)\]<std(?:out|err)>: ?")

_TERMINAL_PATIENCE = 1.0  # seconds until Ctrl-C's own signal has ended mpirun
_END_PATIENCE = 10.0  # seconds that mpirun gets to end its ranks
_FINISH_PATIENCE = 60.0  # seconds for MPI to end once every rank has finished


class Mpirun:
    """mpirun under way. Passes on the signals that end a program, until `wait` returns.

    Args:
        command: mpirun by its path, and its arguments.
        environment: that of mpirun, and so of the ranks on this machine.
        run_dir: where the ranks leave their marks, and `ranks` is how many there are.
        label: the command asks for tags; turn them into `[rank 1]`.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        run_dir: str,
        ranks: int,
        label: bool,
    ) -> None:
        self.received: int | None = None  # the first signal to end the job
        self._run_dir, self._ranks = run_dir, ranks
        self._asked_at = 0.0
        self._passed_on = False
        self._insist = False
        self._signals = _catch(self._on_signal)
        pipe = subprocess.PIPE if label else None
        try:
            # In this process group, so that rank 0 can read from the terminal.
            self._process = subprocess.Popen(
                command, env=environment, stdout=pipe, stderr=pipe
            )
        except OSError:
            _restore(self._signals)
            raise
        sources = (self._process.stdout, 1), (self._process.stderr, 2)
        self._copies = [_copy_labelled(s, to) for s, to in sources if s is not None]

    def wait(self) -> int:
        """mpirun's exit code, negative where a signal ended it."""
        finished_at = None
        try:
            while (code := self._poll()) is None:
                self._end_if_asked()
                if finished_at is None and not unfinished(self._run_dir, self._ranks):
                    finished_at = time.monotonic()
                if finished_at and time.monotonic() - finished_at > _FINISH_PATIENCE:
                    self._process.kill()
            return code
        finally:
            for thread in self._copies:
                thread.join(timeout=5)
            _restore(self._signals)

    def _poll(self) -> int | None:
        try:
            return self._process.wait(timeout=0.1)
        except subprocess.TimeoutExpired:
            return None

    def _on_signal(self, number: int, _frame: object) -> None:
        if self.received is None:
            self.received, self._asked_at = number, time.monotonic()
        else:
            self._insist = True

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
    return [r for r in range(ranks) if not rank_main.done_file(run_dir, r).exists()]


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


def labelled(line: bytes) -> bytes:
    """Open MPI's tags as `[rank 1] `, each at the beginning of a line."""
    return _TAG.sub(
        lambda tag: (b"\n" if tag.start() else b"") + b"[rank %s] " % tag[1], line
    )


def _copy_labelled(source: IO[bytes], target: int) -> threading.Thread:
    def copy() -> None:
        reader_left = False
        for line in source:  # to its end in any case: mpirun must never wait for us
            try:
                if not reader_left:
                    _write(target, labelled(line))
            except OSError:
                reader_left = True

    thread = threading.Thread(target=copy, daemon=True)
    thread.start()
    return thread


def _write(target: int, data: bytes) -> None:
    while data:
        data = data[os.write(target, data) :]


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
