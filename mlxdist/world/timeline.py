"""Timeline of all ranks as a Chrome trace, for ui.perfetto.dev or chrome://tracing.

Each rank has four rows: its calls, their phases, its waits for other ranks, and its
collectives, which may overlap. A collective of the native transport is finished by MLX,
so only its start is known.
"""

from __future__ import annotations

import atexit
import json
import os
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..comm.flight_recorder import Record, Recorder, Span, write_atomically

if TYPE_CHECKING:
    from mpi4py import MPI

Event = dict[str, object]

_ROWS = ("call", "phase", "waiting", "collectives")


class Timeline:
    """Collects the spans and records of all ranks at exit; rank 0 writes the file.

    A job that fails writes none. `mlxdist doctor --postmortem` reads what it leaves.

    Args:
        comm: a communicator for the timeline only.
        path: of the file.
    """

    def __init__(self, recorder: Recorder, comm: MPI.Intracomm, host: str, path: str):
        self._recorder = recorder
        self._comm = comm
        self._host = host
        self._path = Path(path)
        self._pid = os.getpid()
        recorder.keep_timeline()
        self._clock_offset = _clock_offset(comm)
        atexit.register(self._write)

    def _write(self) -> None:
        if os.getpid() != self._pid:  # a forked child
            return
        self._recorder.status.leaving = True
        rank = self._comm.Get_rank()
        local = events(
            rank,
            self._host,
            self._recorder.spans or (),
            self._recorder.records,
            clock_offset=self._clock_offset,
        )
        parts = self._gather(np.frombuffer(json.dumps(local).encode(), np.uint8))
        if rank == 0:
            # Each part is a JSON list; join their contents.
            text = ",".join(part[1:-1].decode() for part in parts)
            write_atomically(self._path, '{"traceEvents": [' + text + "]}\n")

    def _gather(self, local: NDArray[np.uint8]) -> list[bytes]:
        """Return the bytes of every rank, on rank 0."""
        counts = np.zeros(self._comm.Get_size(), np.int64)
        self._comm.Gather(np.array([local.size], np.int64), counts)
        data = np.empty(int(counts.sum()), np.uint8)
        self._comm.Gatherv(local, [data, counts.tolist()])
        return [part.tobytes() for part in np.split(data, np.cumsum(counts)[:-1])]


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
        "name": record.name,
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
