"""Failure handling: a rank that fails ends the whole job and leaves a record.

MPI alone lets the other ranks wait for ever when one raises, exits early or hangs.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import os
import signal
import socket
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from ..comm.agreement import OnAllRanks
from ..comm.flight_recorder import Failure, RankInfo, Recorder
from ..launcher import launches, marks, rank_failure
from ..launcher.user_frames import skip_start, user_location
from ..launcher.visible_text import visible
from .digest import EndNotice
from .finalize import FINALIZE_TIMEOUT, limit_finalize
from .hooks import ExceptionHook, SigtermHook, enable_faulthandler, flush_output, log
from .record_file import write_record
from .watchdog import TICK, Watchdog

if TYPE_CHECKING:
    from mpi4py import MPI

# Seconds after which this process exits by itself: MPI_Abort has been seen to hang
# where two ranks aborted at the same time.
_ABORT_TIMEOUT = 1.5
# Seconds for all else that a rank does before it exits.
_END_TIMEOUT = 10.0
# Seconds in which the other ranks receive the end notice and write their records.
_NOTICE_DELAY = 2 * TICK + 0.1
# Seconds between a rank's record and its exit after SIGTERM. mpirun sends SIGKILL when
# one rank has exited, or after 0.25 s: others may still be writing their records.
_SIGTERM_DELAY = 0.5
# Seconds for which rank 0 is given precedence in reporting an error of all ranks.
_PRECEDENCE = 1.0


class Guard:
    """Ends the whole job when this rank fails.

    Args:
        comm: MPI's COMM_WORLD.
        recorder: flight recorder of this rank.
        timeout: seconds that a rank waits for others of which none makes progress.
        folder: for the records of the ranks when the job fails; equal on all ranks.
    """

    def __init__(
        self, comm: MPI.Intracomm, recorder: Recorder, *, timeout: float, folder: Path
    ):
        self._comm = comm
        self._rank = comm.Get_rank()
        self._size = comm.Get_size()
        self._host = visible(socket.gethostname())
        self._recorder = recorder
        self._folder = folder
        self._exit_comm, self._watch_comm = comm.Dup(), comm.Dup()
        self._ending = threading.Lock()  # never released
        self._failure: Failure | None = None  # of this rank
        self._parent = os.getppid()
        self._finalize_timeout = max(timeout, FINALIZE_TIMEOUT)
        self._main_thread = threading.main_thread().ident or 0
        self._watchdog = Watchdog(
            self._watch_comm, recorder, timeout=timeout, host=self._host, events=self
        )

    def install(self) -> None:
        """Set the process's hooks, and start the watchdog."""
        enable_faulthandler()
        self._exceptions = ExceptionHook(self._fail)
        self._remove_exit_handler = rank_failure.on_exit(self._on_exit)
        self._sigterm = SigtermHook(self._exit_on_sigterm, self._watchdog.wake_fd)
        atexit.register(self._at_exit)
        limit_finalize(self._finalize_timeout)
        os.register_at_fork(after_in_child=self._remove_hooks)
        self._watchdog.start()

    def close(self) -> None:
        """Restore the hooks and end the watchdog, on all ranks."""
        self._remove_hooks()
        self._wait_for_all()
        self._recorder.status.leaving = False
        self._watchdog.stop()
        self._exit_comm.Barrier()  # no rank sends heartbeats any more
        self._watchdog.close()
        for comm in (self._watch_comm, self._exit_comm):
            comm.Free()

    def _remove_hooks(self) -> None:
        """Restore the process's hooks: also in a forked child, which is no rank."""
        self._exceptions.remove()
        self._remove_exit_handler()
        self._sigterm.remove()
        atexit.unregister(self._at_exit)

    # Events of the watchdog

    def on_stuck(self, reason: str) -> None:
        """End the job, with the stacks of all ranks."""
        self._end_job(reason, print_stacks=True)

    def on_slow(self, report: str) -> None:
        """Print a warning."""
        self._log(report)

    def on_end_notice(self, notice: EndNotice) -> None:
        """Write the record of this rank, then wait for MPI to end it."""
        if not self._ending.acquire(blocking=False):
            return
        exit_after(_END_TIMEOUT)
        self._mark("ended")
        self._write_record(print_stack=notice.print_stacks, notice=notice.cause)
        time.sleep(_NOTICE_DELAY + 2 * _ABORT_TIMEOUT)
        os._exit(1)

    def on_orphaned(self) -> None:
        """Exit, as nobody else would end this rank."""
        exit_after(_END_TIMEOUT)
        self._log("exits: the mpirun that started it is gone")
        self._write_record(print_stack=False)
        launches.remove_session(self._parent)
        os._exit(1)

    def on_sigterm(self) -> None:
        """Exit, also where the main thread is inside MPI."""
        if self._sigterm.is_current:
            self._exit_on_sigterm()

    # Hooks of the process

    def _exit_on_sigterm(self) -> None:
        """Exit; mpirun sends SIGTERM to all ranks once one of them has died."""
        if self._ending.acquire(blocking=False):
            exit_after(_END_TIMEOUT)
            self._mark("ended")
            self._write_record(print_stack=False)
            time.sleep(_SIGTERM_DELAY)
            os._exit(128 + signal.SIGTERM)

    def _on_exit(self, leaving: SystemExit, code: int) -> None:
        """End the job because the script exits with a code, which is reported."""
        self._fail(leaving, True, code=code)

    def _fail(
        self, error: BaseException, is_reported: bool, *, code: int | None = None
    ) -> None:
        """End the job because of an exception, which the user's hook may have shown.

        Args:
            code: exit code of the process; None for Python's own.
        """
        self._failure = failure_of(error, self._recorder.status_at(error))
        if isinstance(error, OnAllRanks) and self._rank:
            # Rank 0 reports the error and ends this rank, if it fails as well.
            time.sleep(_PRECEDENCE)
        trace = "\n".join(self._failure.traceback)
        self._mark("step", self._failure.activity)
        if not is_reported:
            self._mark("traceback", f"{trace}\n")
        self._mark("failed", self._failure.message)
        self._end_job(
            f"failed {self._failure.activity}; the job ends:\n"
            + (self._failure.message if is_reported else trace),
            code=code or (130 if isinstance(error, KeyboardInterrupt) else 1),
            print_stacks=False,
        )

    def _at_exit(self) -> None:
        """Wait for the other ranks: one of them may still need this one."""
        error = self._exceptions.missed_error()
        if error is not None:
            self._fail(error, True)
        self._wait_for_all()
        self._mark("leaving", str(self._finalize_timeout))
        self._sigterm.remove()
        self._watchdog.stop()
        self._watchdog.close()

    def _wait_for_all(self) -> None:
        """Wait until all ranks have finished: the watchdog reports those that work."""
        status = self._recorder.status
        status.since, status.leaving = time.monotonic(), True
        all_finished = self._exit_comm.Ibarrier()
        pause = 1e-4
        while not all_finished.Test():
            time.sleep(pause)
            pause = min(2 * pause, 0.05)

    # The end of the job

    def _end_job(self, reason: str, *, code: int = 1, print_stacks: bool) -> NoReturn:
        """Print the reason, have all ranks write their records, and end all of them."""
        if not self._ending.acquire(blocking=False):
            threading.Event().wait()  # for ever: another thread is ending the job
        exit_after(_END_TIMEOUT)
        flush_output()
        if not marks.are_read():  # else `mlxdist run` says it, and where the record is
            self._log(reason)
        if self._failure is None:
            self._failure = Failure(time.time(), str(self._recorder.status), reason)
            self._mark("traceback", f"{self._title} {reason}\n")
        short = " ".join(line.strip() for line in reason.splitlines()[:2])
        self._mark("failed", f"it {short}")
        name = f"rank {self._rank} on {self._host}"
        cause = self._failure.describe(
            f"{name} failed first" if self._failure.traceback else name
        )
        self._watchdog.notify(EndNotice(print_stacks, cause))
        self._write_record(print_stack=print_stacks)
        time.sleep(_NOTICE_DELAY)
        if not marks.are_read():
            self._log(
                f"wrote the last calls of the ranks to {self._folder}; read them with "
                f"`mlxdist doctor --postmortem {self._folder}`"
            )
        abort(self._comm, code)

    def _mark(self, mark: str, text: str = "") -> None:
        """Leave a mark for `mlxdist run`, if it started this rank."""
        with contextlib.suppress(OSError):
            marks.leave_mark(mark, self._rank, text)

    def _write_record(self, *, print_stack: bool, notice: str = "") -> None:
        frames = skip_start(
            traceback.extract_stack(sys._current_frames().get(self._main_thread))
        )
        stack = "".join(traceback.format_list(frames)).rstrip()
        info = RankInfo(
            self._rank,
            self._size,
            self._host,
            os.getpid(),
            stack.splitlines(),
            user_location(frames),
            self._failure,
            notice,
        )
        try:
            self._folder = write_record(self._recorder, self._folder, info)
            self._mark("record", str(self._folder))
            self._recorder.handle_failure()
        except OSError as error:
            self._log(f"could not write its record: {error}")
        if print_stack and not marks.are_read():
            self._log(f"was {self._recorder.status}:\n{stack}")

    @property
    def _title(self) -> str:
        return f"mlxdist: rank {self._rank} on {self._host}"

    def _log(self, text: str) -> None:
        log(f"{self._title} {text}\n")


def abort(comm: MPI.Intracomm, code: int) -> NoReturn:
    """End all ranks by MPI_Abort, and this process also where that hangs.

    mpi4py holds Python's lock meanwhile, so a timer of Python would not run.
    """
    exit_after(_ABORT_TIMEOUT)
    comm.Abort(code)
    os._exit(code)


def exit_after(seconds: float) -> None:
    """Have this process exit after some time, whatever its threads do then.

    Standard error may be a pipe that nobody reads, and MPI may hang. Nothing is done
    where no thread can start, or no file be opened.
    """
    with contextlib.suppress(OSError, RuntimeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)  # never closed
        faulthandler.dump_traceback_later(seconds, exit=True, file=nowhere)


def failure_of(error: BaseException, activity: str) -> Failure:
    """Return the record of an exception that a rank did not catch."""
    return Failure(
        time.time(),
        activity,
        "".join(traceback.format_exception_only(error)).rstrip(),
        user_location(traceback.extract_tb(error.__traceback__)),
        "".join(traceback.format_exception(error)).rstrip().splitlines(),
    )
