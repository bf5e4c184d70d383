"""Timeline of all ranks as a Chrome trace, for ui.perfetto.dev or chrome://tracing.

`trace_events` says what is in it. `mlxdist report` sums it up.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..comm.flight_recorder import MAX_TIMELINE_RECORDS
from ..launcher.private_files import make_folder, read_text, write_atomically
from .clocks import Alignment, first_ranks, measure, same_clock
from .hooks import ExceptionHook, SigtermHook, log
from .trace_events import Event, Process

if TYPE_CHECKING:
    from mpi4py import MPI

    from .world import World

_START, _END = '{"traceEvents": [', "]}\n"
# Spans, and records, that a rank writes when the job fails: mpirun gives it 0.25 s.
_LAST = 2000
_LOCK_TIMEOUT = 1.0  # seconds


class Timeline:
    """Collects the spans and records of all ranks at exit; rank 0 writes the file.

    When the job fails or is ended, each rank adds its last spans and records to the
    file of its host by itself. A rank that is killed adds nothing. Until then the file
    has no events, so that a reader knows what it lacks.

    Args:
        comm: a communicator for the timeline only; None in a world of one rank.
        path: of the file.
    """

    def __init__(self, world: World, comm: MPI.Intracomm | None, path: str):
        recorder, transport = world.recorder, world.host_transport
        self._recorder = recorder
        self._comm = comm
        self._rank, self._size, self._host = world.rank, world.size, world.host
        self._overlaps = transport is not None and transport.overlaps
        self._path = Path(path)
        self._pid = os.getpid()
        recorder.keep_timeline()
        self._path.unlink(missing_ok=True)  # of an earlier job
        self._alignment = Alignment(same_clock(), same_clock())
        if comm is not None:
            self._readers = first_ranks(comm)
            first = measure(comm, self._readers)
            self._alignment = Alignment(first, first)
        self._start = self._origin = time.time()
        if comm is not None:
            self._origin = _least(comm, self._alignment.on_rank_0(self._start))
        if self._rank == 0:
            with contextlib.suppress(OSError):  # of which the end tells
                write_atomically(self._path, _START + _END)
        atexit.register(self._write)
        recorder.on_failure(self._add_last_events)
        # No guard calls on_failure in a world of one.
        self._hooks = _LoneHooks(self._add_last_events) if comm is None else None

    def _write(self) -> None:
        if os.getpid() != self._pid:  # a forked child
            return
        if self._hooks is not None:
            self._hooks.remove()
        self._recorder.status.leaving = True
        end = time.time()
        if self._comm is not None:
            last = measure(self._comm, self._readers)
            self._alignment = Alignment(self._alignment.first, last)
        local = np.frombuffer(json.dumps(self._events(end)).encode(), np.uint8)
        parts = [local.tobytes()] if self._comm is None else _gather(self._comm, local)
        if self._rank == 0:
            # Each part is a JSON list; join their contents.
            text = ",".join(part[1:-1].decode() for part in parts)
            self._save(_START + text + _END)

    def _save(self, text: str) -> None:
        """Write the file. An error ends nothing: the job has done its work."""
        try:
            write_atomically(self._path, text)
        except OSError as error:
            log(
                f"mlxdist: error: the timeline {self._path} can't be written: "
                f"{error.strerror}\n"
            )

    def close(self) -> None:
        """Write the file now, on all ranks, and not at exit."""
        atexit.unregister(self._write)
        self._write()
        self._recorder.status.leaving = False
        if self._comm is not None:
            self._comm.Free()

    def _events(self, end: float, most: int | None = None) -> list[Event]:
        """Return this rank's events: of all spans and records, or of the last ones."""
        spans, records = list(self._recorder.spans or ()), list(self._recorder.records)
        is_short = max(len(spans), len(records)) < MAX_TIMELINE_RECORDS
        process = Process(
            self._rank,
            self._size,
            self._host,
            self._start,
            end,
            self._origin,
            self._alignment,
            overlaps=self._overlaps,
            is_complete=most is None and is_short,
        )
        kept = slice(None) if most is None else slice(-most, None)
        return process.events(spans[kept], records[kept])

    def _add_last_events(self) -> None:
        add_events(self._path, self._events(time.time(), _LAST))


class _LoneHooks:
    """Hooks for exceptions and SIGTERM in a world of one, which has no guard.

    Args:
        on_end: called before one of them ends the process.
    """

    def __init__(self, on_end: Callable[[], None]):
        self._on_end = on_end
        self._exceptions = ExceptionHook(self._on_exception)
        self._ending = threading.Lock()  # never released
        self._wake, self._wake_fd = os.pipe()
        os.set_blocking(self._wake_fd, False)
        self._sigterm = SigtermHook(self._end, self._wake_fd)
        if self._sigterm.installed:
            # A child has the same pipe, and a signal to it must not end this process.
            os.register_at_fork(after_in_child=self._sigterm.remove)
            threading.Thread(target=self._watch, daemon=True).start()

    def remove(self) -> None:
        """Restore the process's hooks, and end the thread."""
        self._exceptions.remove()
        self._sigterm.remove()
        os.write(self._wake_fd, b"\0")

    def _on_exception(self, error: BaseException, is_reported: bool) -> None:
        with contextlib.suppress(OSError):
            self._on_end()
        if not is_reported:
            sys.__excepthook__(type(error), error, error.__traceback__)

    def _watch(self) -> None:
        """Notice SIGTERM also where the main thread evaluates, and runs no Python."""
        os.read(self._wake, 1)
        if self._sigterm.is_current:
            self._end()

    def _end(self) -> None:
        if self._ending.acquire(blocking=False):
            with contextlib.suppress(OSError):
                self._on_end()
            os._exit(128 + signal.SIGTERM)


def _least(comm: MPI.Intracomm, local: float) -> float:
    """Return the least number of all ranks."""
    every = np.empty(comm.Get_size())
    comm.Allgather(np.array([local]), every)
    return float(every.min())


def _gather(comm: MPI.Intracomm, local: NDArray[np.uint8]) -> list[bytes]:
    """Return the bytes of every rank, on rank 0."""
    counts = np.zeros(comm.Get_size(), np.int64)
    comm.Gather(np.array([local.size], np.int64), counts)
    data = np.empty(int(counts.sum()), np.uint8)
    comm.Gatherv(local, [data, counts.tolist()])
    return [part.tobytes() for part in np.split(data, np.cumsum(counts)[:-1])]


def add_events(path: Path, local: list[Event]) -> None:
    """Add events to a trace, which other processes may do at the same time.

    Raises:
        OSError: the trace can't be written, or another process had the lock too long.
    """
    added = json.dumps(local)[1:-1]  # before the lock: the others wait for that
    make_folder(path.parent)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        _lock(folder)
        before = _earlier_text(path)
        separator = "" if before == _START + _END else ","
        write_atomically(path, before.removesuffix(_END) + separator + added + _END)
    finally:
        os.close(folder)  # and with it the lock


def _earlier_text(path: Path) -> str:
    """Return what other ranks have written; of a file of another user nothing."""
    try:
        if os.lstat(path).st_uid == os.geteuid():
            return read_text(path)
    except OSError:  # there is none, or it is a link
        pass
    return _START + _END


def _lock(descriptor: int) -> None:
    """Lock a folder. It must not wait for ever: the process may be stopped."""
    deadline = time.monotonic() + _LOCK_TIMEOUT
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.002)
