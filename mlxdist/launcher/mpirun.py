"""mpirun as a child process: signals, the time limit, and its end."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence

from . import marks
from .orphans import Watcher
from .output import Output
from .signals import Signals

FINISH_TIMEOUT = 60.0  # seconds for MPI to end once every rank has finished
# Seconds for mpirun to end once no rank lives any more and not all have finished. Where
# a rank ends while another one starts MPI, Open MPI 5's mpirun may hang for ever.
GONE_TIMEOUT = 5.0
_TERMINAL_DELAY = 1.0  # seconds for a terminal's own Ctrl-C signal to end mpirun
_STOP_TIMEOUT = 10.0  # seconds for mpirun to end its ranks
_START_TIMEOUT = 1.0  # seconds for mpirun to be able to forward a signal
_SUSPEND_TIMEOUT = 4.0  # seconds for mpirun to stop its ranks
_POLL_INTERVAL = 0.1  # seconds


class Mpirun:
    """A running mpirun. It passes on signals that this process gets.

    Args:
        command: mpirun's path and arguments.
        environment: that of mpirun, and of the ranks on this machine.
        run_dir: folder of the ranks' marks.
        ranks: the number of ranks.
        output: copies what the job prints.
        signals: what this process has received, before mpirun was started too.
        timeout: seconds after which the job is ended.

    Attributes:
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
        signals: Signals,
        timeout: float | None = None,
    ) -> None:
        self.timed_out = False
        self.has_leftover = False
        self.timeout = timeout
        self._run_dir, self._ranks, self._signals = run_dir, ranks, signals
        self._timed_out_at = 0.0
        self._passed_on = False
        self._without_ranks_since: float | None = None
        self._outlived_ranks = False  # and was killed
        self._began = time.monotonic()
        self._watcher = Watcher(run_dir)
        # In this process group, so that rank 0 can read from the terminal. But mpirun
        # ends its job on SIGHUP, also under nohup: a terminal that closes must not
        # reach it then.
        is_nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        try:
            self._process = subprocess.Popen(
                command,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=is_nohup,
            )
        except BaseException:
            self._watcher.stop()
            raise
        self._watcher.watch(self._process.pid)
        # Popen.wait(timeout) polls every 50 ms. An event returns at once.
        self._exited = threading.Event()
        threading.Thread(target=self._await_exit, daemon=True).start()
        streams = (self._process.stdout, 1), (self._process.stderr, 2)
        pid = self._process.pid
        self._copies = [output.copy(file, to, pid) for file, to in streams if file]

    def wait(self) -> int:
        """Return mpirun's exit code; a signal's negative number if one ended it.

        It is 1 where mpirun has outlived its ranks, which did not all finish.
        """
        try:
            while not self._exited.wait(timeout=_POLL_INTERVAL):
                self._check_time_limit()
                self._pass_on_signals()
                self._end_without_ranks()
            return 1 if self._outlived_ranks else self._process.returncode
        finally:
            self._signals.forward_to(None)
            for thread in self._copies:
                thread.join(timeout=5)
            self._watcher.stop()

    def _end_without_ranks(self) -> None:
        """Kill mpirun if it goes on for too long without any rank."""
        finished = not marks.unfinished(self._run_dir, self._ranks)
        if not finished and not marks.all_gone(self._run_dir, self._ranks):
            return
        if self._without_ranks_since is None:
            self._without_ranks_since = self._active_seconds()
        waited = self._active_seconds() - self._without_ranks_since
        if waited > (FINISH_TIMEOUT if finished else GONE_TIMEOUT):
            self.has_leftover, self._outlived_ranks = finished, not finished
            self._process.kill()

    def _await_exit(self) -> None:
        self._process.wait()
        self._exited.set()

    def _active_seconds(self) -> float:
        """Return the seconds since the start, without those of a suspended job."""
        return time.monotonic() - self._began - self._signals.suspended

    def _check_time_limit(self) -> None:
        if self.timeout is None or self.timed_out or self._signals.received is not None:
            return
        if self._active_seconds() > self.timeout:
            self.timed_out, self._timed_out_at = True, time.monotonic()

    def _pass_on_signals(self) -> None:
        if self._signals.received is not None:
            self._end(self._signals.received, self._signals.received_at)
        elif self.timed_out:
            self._end(signal.SIGTERM, self._timed_out_at)
        # Sooner, a signal would end mpirun, or a rank that is not yet a Python.
        elif self._active_seconds() > _START_TIMEOUT or marks.all_started(
            self._run_dir, self._ranks
        ):
            self._signals.forward_to(self._forward)

    def _forward(self, number: int) -> None:
        self._process.send_signal(number)
        if number == signal.SIGTSTP:
            # mpirun stops the ranks, at times a second later, and goes on. It must not
            # read from the terminal while another program has that: it would hang.
            deadline = time.monotonic() + _SUSPEND_TIMEOUT
            while time.monotonic() < deadline and not self._ranks_are_stopped():
                time.sleep(_POLL_INTERVAL)
            self._process.send_signal(signal.SIGSTOP)

    def _ranks_are_stopped(self) -> bool:
        """Return whether all ranks on this machine are; False if none is known."""
        pids = ",".join(marks.process_ids(self._run_dir, self._ranks))
        ps = ["ps", "-o", "stat=", "-p", pids]
        states = subprocess.run(ps, capture_output=True, text=True, check=False).stdout
        return all(x.startswith("T") for x in states.split()) and bool(states)

    def _end(self, number: int, since: float) -> None:
        waited = time.monotonic() - since
        if self._signals.repeated or waited > _STOP_TIMEOUT:
            self._process.kill()
        # Ctrl-C in a terminal reaches mpirun as well. A second signal would make it
        # exit at once, before its ranks have ended.
        elif number == signal.SIGTERM or waited > _TERMINAL_DELAY:
            if not self._passed_on:
                self._process.terminate()
            self._passed_on = True
