"""mpirun as a child process: signals, the time limit, and its end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from typing import IO, cast

from . import marks
from .orphans import Watcher
from .output import Output
from .signals import Signals

FINISH_TIMEOUT = 60.0  # seconds for MPI to end once every rank has finished
# Seconds for mpirun to end once no rank lives any more and not all have finished. Where
# a rank ends while another one starts MPI, Open MPI 5's mpirun may hang for ever.
GONE_TIMEOUT = 5.0
# Seconds for mpirun to end the job once a rank has failed. It may hang where a daemon
# of its own, on another host, is stopped or out of reach.
FAILED_TIMEOUT = 30.0
# Seconds for mpirun to end, beyond those that MPI_Finalize may take. Both wait for a
# daemon on another host that is stopped.
LEAVING_TIMEOUT = 30.0
JOIN_TIMEOUT = 5.0  # seconds for a rank that waits for ranks that can't join any more
STOPPED_TIMEOUT = 60.0  # seconds for which mpirun may be stopped by SIGSTOP
_TERMINAL_DELAY = 1.0  # seconds for a terminal's own Ctrl-C signal to end mpirun
STOP_TIMEOUT = 10.0  # seconds for mpirun to end its ranks
_START_TIMEOUT = 1.0  # seconds for mpirun to be able to forward a signal
_SUSPEND_TIMEOUT = 4.0  # seconds for mpirun to stop its ranks
_OUTPUT_TIMEOUT = 5.0  # seconds for the job's output to be read after its end
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
        was_stopped: whether the job was ended because mpirun was stopped by SIGSTOP.
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
        self.was_stopped = False
        self.timeout = timeout
        self._run_dir, self._ranks, self._signals = run_dir, ranks, signals
        self._timed_out_at = 0.0
        self._passed_on = False
        self._since: dict[str, float] = {}  # when mpirun got into the states it is in
        self._ended_at: float | None = None  # when this process ended the job by itself
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
        self._output = output
        for file, target in ((self._process.stdout, 1), (self._process.stderr, 2)):
            output.copy(cast(IO[bytes], file), target, self._process.pid)

    def wait(self) -> int:
        """Return mpirun's exit code; a signal's negative number if one ended it.

        It is 1 where mpirun did not end by itself, and the ranks did not all finish.
        """
        try:
            while not self._exited.wait(timeout=_POLL_INTERVAL):
                self._check_time_limit()
                self._pass_on_signals()
                self._end_overdue()
            return 1 if self._ended_at is not None else self._process.returncode
        finally:
            self._signals.forward_to(None)
            self._output.finish(_OUTPUT_TIMEOUT)
            self._watcher.stop()

    def _end_overdue(self) -> None:
        """End the job where mpirun is for too long in a state that leads nowhere."""
        if self._ended_at is not None:
            self._end(signal.SIGTERM, self._ended_at)
            return
        now, limits = self._active_seconds(), self._limits()
        self._since = {state: self._since.get(state, now) for state in limits}
        overdue = [x for x, limit in limits.items() if now - self._since[x] > limit]
        if not overdue or self._signals.received is not None or self.timed_out:
            return
        self.was_stopped = "stopped" in overdue
        if "finished" in overdue:
            self.has_leftover = True
        else:
            self._ended_at = time.monotonic()
        if "unjoined" in overdue:
            marks.report_unjoined(self._run_dir, self._ranks)
        if {"finished", "gone", "stopped"} & {*overdue}:  # it doesn't end its ranks
            self._process.kill()

    def _limits(self) -> dict[str, float]:
        """Return the states that mpirun is in, and the seconds that each may last."""
        run_dir, ranks = self._run_dir, self._ranks
        finalize_limit = marks.finalize_limit(run_dir, ranks)
        states = {
            "finished": not marks.unfinished(run_dir, ranks) and FINISH_TIMEOUT,
            "gone": marks.all_gone(run_dir, ranks) and GONE_TIMEOUT,
            "failed": marks.any_failed(run_dir, ranks) and FAILED_TIMEOUT,
            "leaving": finalize_limit and finalize_limit + LEAVING_TIMEOUT,
            "unjoined": all(marks.unjoined(run_dir, ranks)) and JOIN_TIMEOUT,
            "stopped": self._is_stopped() and STOPPED_TIMEOUT,
        }
        if states["finished"]:  # its ranks are gone as well
            states["gone"] = False
        return {state: limit for state, limit in states.items() if limit}

    def _is_stopped(self) -> bool:
        """Return whether SIGSTOP has stopped mpirun; a terminal uses other signals."""
        flags = os.WSTOPPED | os.WNOHANG | os.WNOWAIT
        with contextlib.suppress(ChildProcessError):
            state = os.waitid(os.P_PID, self._process.pid, flags)
            return state is not None and state.si_status == signal.SIGSTOP
        return False

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
        if self._signals.repeated or waited > STOP_TIMEOUT:
            self._process.kill()
        # Ctrl-C in a terminal reaches mpirun as well. A second signal would make it
        # exit at once, before its ranks have ended.
        elif number == signal.SIGTERM or waited > _TERMINAL_DELAY:
            if not self._passed_on:
                self._process.terminate()
            self._passed_on = True
