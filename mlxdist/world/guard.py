"""A rank that fails ends the job, with its name, and leaves a record.

MPI alone leaves the other ranks waiting for ever when one raises, leaves early, or
stands still.
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
from types import FrameType, TracebackType
from typing import Any

from ..comm.agreement import OnAllRanks
from ..comm.flight_recorder import Recorder
from ..launcher import marks
from .watchdog import TICK, Watchdog

# Abort has been seen to hang where two ranks aborted together.
_ABORT_PATIENCE = 1.5
# What the others need to notice the end, and to write their records.
_LAST_WORDS = 2 * TICK + 0.1


class Guard:
    """Ends the whole job when this rank fails. Made once, by `mlxdist.init()`.

    Args:
        mpi: mpi4py's MPI module.
        rank, recorder: this rank's.
        timeout: seconds that a rank may wait for others, in a call or at its end.
        folder: where records go when the job dies; the same on all ranks.
    """

    def __init__(
        self, mpi: Any, rank: int, recorder: Recorder, *, timeout: float, folder: Path
    ):
        self._mpi = mpi
        self._rank = rank
        self._host = socket.gethostname()
        self._recorder = recorder
        self._timeout = timeout
        self._folder = folder
        self._last_comm = mpi.COMM_WORLD.Dup()
        self._alone = self._last_comm.Get_size() == 1
        self._ending = threading.Lock()
        self._main = threading.main_thread()
        self._watchdog = Watchdog(
            mpi.COMM_WORLD.Dup(),
            recorder,
            timeout=timeout,
            host=self._host,
            end=self._end_stuck,
            asked=self._asked_to_end,
            orphaned=self._orphaned,
            terminated=self._terminated,
        )

    def install(self) -> None:
        faulthandler.enable()
        sys.excepthook = self._on_exception
        atexit.register(self._at_exit)
        os.register_at_fork(after_in_child=self._forked)
        if self._alone:
            return
        if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
            with contextlib.suppress(ValueError):  # not in the main thread
                signal.signal(signal.SIGTERM, self._on_sigterm)
                signal.set_wakeup_fd(self._watchdog.wake_fd, warn_on_full_buffer=False)
        self._watchdog.start()

    def _forked(self) -> None:
        """In a child of this rank, which is not a rank and must not speak for it."""
        if signal.getsignal(signal.SIGTERM) == self._on_sigterm:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        atexit.unregister(self._at_exit)
        sys.excepthook = _ChildExit().install()

    def _on_exception(
        self,
        kind: type[BaseException],
        error: BaseException,
        trace: TracebackType | None,
    ) -> None:
        if self._alone:
            sys.__excepthook__(kind, error, trace)
            return
        if isinstance(error, OnAllRanks) and self._rank:
            time.sleep(1.0)  # rank 0 tells of it, and ends this one, if it fails too
        text = "".join(traceback.format_exception(kind, error, trace)).rstrip()
        code = 130 if kind is KeyboardInterrupt else 1
        place = getattr(error, "mlxdist_place", self._recorder.status)
        self._end(f"failed {place}; the job ends:\n{text}", code=code, stacks=False)

    def _end(self, reason: str, *, code: int = 1, stacks: bool) -> None:
        """Says why, has all ranks write their records, and ends every one of them."""
        if not self._ending.acquire(blocking=False):
            threading.Event().wait()  # somebody is at it already
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        self._say(reason)
        self._tell_launcher("failed", " ".join(reason.split()[:60]))
        if not self._alone:
            self._watchdog.notify(stacks=stacks)
            self._write(stacks)
            time.sleep(_LAST_WORDS)
            self._say(
                f"wrote what the ranks did last to {self._folder}; read it with "
                f"`mlxdist doctor --postmortem {self._folder}`"
            )
        last_resort = threading.Timer(_ABORT_PATIENCE, os._exit, (code,))
        last_resort.daemon = True
        last_resort.start()
        self._mpi.COMM_WORLD.Abort(code)
        os._exit(code)

    def _end_stuck(self, reason: str) -> None:
        self._end(reason, stacks=True)

    def _asked_to_end(self, stacks: bool) -> None:
        """Another rank ends the job; it will end this one too."""
        if not self._ending.acquire(blocking=False):
            return
        self._tell_launcher("ended")
        self._write(stacks)
        time.sleep(_LAST_WORDS + 2 * _ABORT_PATIENCE)
        os._exit(1)

    def _orphaned(self) -> None:
        self._say("ends itself: the mpirun that started it is gone")
        self._write(stacks=False)
        os._exit(1)

    def _on_sigterm(self, number: int, frame: FrameType | None) -> None:
        self._terminated()

    def _terminated(self) -> None:
        """mpirun ends the job this way, once another rank has died."""
        if self._ending.acquire(blocking=False):
            self._tell_launcher("ended")
            self._write(stacks=False)
            os._exit(128 + signal.SIGTERM)

    def _tell_launcher(self, mark: str, text: str = "") -> None:
        """Leaves `mlxdist run` a word, where it started this rank."""
        with contextlib.suppress(OSError):
            marks.leave_mark(mark, self._rank, text)

    def _write(self, stacks: bool) -> None:
        stack = self._stack()
        about = {
            "rank": self._rank,
            "size": self._last_comm.Get_size(),
            "host": self._host,
            "pid": os.getpid(),
        }
        try:
            self._recorder.write(
                self._folder, self._rank, {**about, "stack": stack.splitlines()}
            )
        except OSError as error:
            self._say(f"could not write its record: {error}")
        if stacks:
            self._say(f"was {self._recorder.status}:\n{stack}")

    def _stack(self) -> str:
        frame = sys._current_frames().get(self._main.ident or 0)
        return "".join(traceback.format_stack(frame)).rstrip()

    def _say(self, text: str) -> None:
        who = f"rank {self._rank} on {self._host}"
        # In one piece: other ranks write to the same stream.
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(f"mlxdist: {who} {text}\n")
            sys.stderr.flush()

    def _at_exit(self) -> None:
        """Waits for the others, so that none leaves while another counts on it."""
        self._recorder.status.leaving = True
        everyone = self._last_comm.Ibarrier()
        deadline = time.monotonic() + self._timeout
        pause = 1e-4
        while not everyone.Test():
            if time.monotonic() > deadline:
                self._end(
                    f"has finished, but others are still at work {self._timeout:g} s "
                    "later. Either they wait for this rank, which took fewer steps "
                    "than they, or they need longer: mlxdist.init(timeout=...)",
                    stacks=True,
                )
            time.sleep(pause)
            pause = min(2 * pause, 0.05)
        if not self._alone:
            self._watchdog.stop()


class _ChildExit:
    """Ends a forked child without the C library's exit handlers.

    The last of them ends MPI, and MPI is its parent's.
    """

    def __init__(self) -> None:
        self._code = 0
        self._exit = sys.exit

    def install(self) -> Any:
        sys.exit = self._note_and_exit  # type: ignore[assignment]
        atexit.register(self._leave)
        return self._on_exception

    def _note_and_exit(self, code: Any = None, /) -> None:
        self._code = code if isinstance(code, int) else int(code is not None)
        self._exit(code)

    def _on_exception(self, *raised: Any) -> None:
        self._code = 1
        sys.__excepthook__(*raised)

    def _leave(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(self._code & 0xFF)
