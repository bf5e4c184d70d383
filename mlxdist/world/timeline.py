"""Timeline of all ranks as a Chrome trace, for ui.perfetto.dev or chrome://tracing.

Each rank has four rows: its calls, their phases, its waits for other ranks, and its
collectives, which may overlap and name their bucket. A collective of the native
transport is finished by MLX, so only its start is known.
"""

from __future__ import annotations

import atexit
import fcntl
import json
import os
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..comm.flight_recorder import Record, Recorder, Span
from ..launcher.private_files import make_folder, read_text, write_atomically
from .hooks import ExceptionHook

if TYPE_CHECKING:
    from mpi4py import MPI

Event = dict[str, object]

_START, _END = '{"traceEvents": [', "]}\n"
# Spans, and records, that a rank writes when the job fails: mpirun gives it 0.25 s.
_LAST = 2000
_LOCK_TIMEOUT = 1.0  # seconds
_ROWS = ("call", "phase", "waiting", "collectives")


class Timeline:
    """Collects the spans and records of all ranks at exit; rank 0 writes the file.

    When the job fails, each rank adds its last spans and records to the file of its
    host by itself. A rank that is killed adds nothing.

    Args:
        comm: a communicator for the timeline only; None in a world of one rank.
        path: of the file.
    """

    def __init__(
        self, recorder: Recorder, comm: MPI.Intracomm | None, host: str, path: str
    ):
        self._recorder = recorder
        self._comm = comm
        self._rank = 0 if comm is None else comm.Get_rank()
        self._host = host
        self._path = Path(path)
        self._pid = os.getpid()
        recorder.keep_timeline()
        self._path.unlink(missing_ok=True)  # of an earlier job
        self._clock_offset = 0.0 if comm is None else _clock_offset(comm)
        atexit.register(self._write)
        recorder.on_failure(self._add_last_events)
        # No guard calls on_failure in a world of one.
        self._hook = ExceptionHook(self._on_exception) if comm is None else None

    def _write(self) -> None:
        if os.getpid() != self._pid:  # a forked child
            return
        self._recorder.status.leaving = True
        local = np.frombuffer(json.dumps(self._events()).encode(), np.uint8)
        parts = [local.tobytes()] if self._comm is None else _gather(self._comm, local)
        if self._rank == 0:
            # Each part is a JSON list; join their contents.
            text = ",".join(part[1:-1].decode() for part in parts)
            write_atomically(self._path, _START + text + _END)

    def close(self) -> None:
        """Write the file now, on all ranks, and not at exit."""
        atexit.unregister(self._write)
        if self._hook is not None:
            self._hook.remove()
        self._write()
        self._recorder.status.leaving = False
        if self._comm is not None:
            self._comm.Free()

    def _events(self, most: int | None = None) -> list[Event]:
        """Return this rank's events: of all spans and records, or of the last ones."""
        spans, records = list(self._recorder.spans or ()), list(self._recorder.records)
        return events(
            self._rank,
            self._host,
            spans if most is None else spans[-most:],
            records if most is None else records[-most:],
            clock_offset=self._clock_offset,
        )

    def _add_last_events(self) -> None:
        add_events(self._path, self._events(_LAST))

    def _on_exception(self, error: BaseException, is_reported: bool) -> None:
        self._add_last_events()
        if not is_reported:
            sys.__excepthook__(type(error), error, error.__traceback__)


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
    make_folder(path.parent)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        _lock(folder)
        before = _earlier_text(path)
        separator = "" if before == _START + _END else ","
        text = before.removesuffix(_END) + separator + json.dumps(local)[1:-1] + _END
        write_atomically(path, text)
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


def _clock_offset(comm: MPI.Intracomm) -> float:
    """Return the seconds by which this rank's clock is ahead of rank 0's.

    Clocks of hosts differ, but all ranks leave a barrier at nearly the same time.
    """
    comm.Barrier()
    local = np.array([time.time()])
    clocks = np.empty(comm.Get_size())
    comm.Allgather(local, clocks)
    return float(local[0] - clocks[0])


def events(
    rank: int,
    host: str,
    spans: Iterable[Span],
    records: Iterable[Record],
    *,
    clock_offset: float = 0.0,
) -> list[Event]:
    """Return one rank's events in Chrome's trace format, with times in microseconds.

    Args:
        clock_offset: seconds by which this rank's clock is ahead of rank 0's.
    """
    result: list[Event] = [_metadata(rank, "process_name", f"rank {rank} on {host}")]
    result += [
        _metadata(rank, "thread_name", name, row=row) for row, name in enumerate(_ROWS)
    ]
    for span in spans:
        result.append(_span_event(rank, span, clock_offset))
    for record in records:
        result += _record_events(rank, record, clock_offset)
    return result


def _metadata(rank: int, kind: str, name: str, row: int | None = None) -> Event:
    thread = {} if row is None else {"tid": row}
    return {"name": kind, "ph": "M", "pid": rank, **thread, "args": {"name": name}}


def _span_event(rank: int, span: Span, clock_offset: float) -> Event:
    return {
        "name": span.name,
        "cat": span.kind,
        "pid": rank,
        "tid": _ROWS.index(span.kind),
        "ph": "X",
        "ts": _microseconds(span.start - clock_offset),
        "dur": _microseconds(span.end - span.start),
        "args": {"step": span.step},
    }


def _record_events(rank: int, record: Record, clock_offset: float) -> list[Event]:
    """Return the start and the end of a collective, or its start alone."""
    common: Event = {
        "name": f"{record.name}, {record.contents}".removesuffix(", "),
        "cat": "collectives",
        "pid": rank,
        "tid": _ROWS.index("collectives"),
    }
    start = _microseconds(record.start - clock_offset)
    begin = {**common, "ts": start, "args": asdict(record)}
    if record.end is None:
        return [{**begin, "ph": "i", "s": "t"}]
    common["id"] = begin["id"] = f"{rank}.{record.sequence}"
    end = _microseconds(record.end - clock_offset)
    return [{**begin, "ph": "b"}, {**common, "ph": "e", "ts": end}]


def _microseconds(seconds: float) -> float:
    return round(seconds * 1e6, 1)
