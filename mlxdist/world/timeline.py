"""What every rank did when: a Chrome trace, for ui.perfetto.dev or chrome://tracing.

A row for each rank's calls, the phases of a call, what it waited for, and its
collectives, which may overlap. Where MLX finishes a collective itself, over the native
transport, only its beginning is known.
"""

from __future__ import annotations

import atexit
import json
import os
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ..comm.flight_recorder import Record, Recorder, Span

_ROWS = ("call", "phase", "waiting", "collectives")


class Timeline:
    """Gathers every rank's spans and records on rank 0 at the end, and writes them.

    A job that dies writes none: `mlxdist doctor --postmortem` reads what it left.

    Args:
        comm: an mpi4py communicator of its own.
        path: the file that rank 0 writes.
    """

    def __init__(self, recorder: Recorder, comm: Any, host: str, path: str) -> None:
        self._recorder, self._comm = recorder, comm
        self._host, self._path = host, Path(path)
        self._owner = os.getpid()
        recorder.keep_timeline()
        # Hosts' clocks differ. All leave a barrier at nearly the same time.
        comm.Barrier()
        own = np.array([time.time()])
        every = np.empty(comm.Get_size())
        comm.Allgather(own, every)
        self._ahead = float(own[0] - every[0])  # seconds, of rank 0's clock
        atexit.register(self._write)

    def _write(self) -> None:
        if os.getpid() != self._owner:
            return
        self._recorder.status.leaving = True
        rank = self._comm.Get_rank()
        own = json.dumps(
            events(
                rank,
                self._host,
                self._recorder.spans or (),
                self._recorder.records,
                ahead=self._ahead,
            )
        ).encode()
        gathered = self._gather(np.frombuffer(own, np.uint8))
        if rank == 0:
            # Each is a JSON list: the brackets between them become commas.
            text = ",".join(part[1:-1].decode() for part in gathered)
            beside = self._path.with_name(f".{self._path.name}.{os.getpid()}")
            self._path.parent.mkdir(parents=True, exist_ok=True)
            beside.write_text('{"traceEvents": [' + text + "]}\n")
            beside.replace(self._path)

    def _gather(self, own: Any) -> list[bytes]:
        from mpi4py import MPI

        counts = np.zeros(self._comm.Get_size(), np.int64)
        self._comm.Gather(np.array([own.size], np.int64), counts)
        whole = np.empty(int(counts.sum()), np.uint8)
        self._comm.Gatherv(own, [whole, counts.tolist(), None, MPI.BYTE])
        ends = np.cumsum(counts)
        return [
            whole[end - n : end].tobytes() for end, n in zip(ends, counts, strict=True)
        ]


def events(
    rank: int,
    host: str,
    spans: Iterable[Span],
    records: Iterable[Record],
    *,
    ahead: float = 0.0,
) -> list[dict[str, Any]]:
    """One rank's events in Chrome's trace format, in microseconds of rank 0's clock.

    Args:
        ahead: seconds by which this rank's clock is before rank 0's.
    """

    def at(seconds: float) -> float:
        return round((seconds - ahead) * 1e6, 1)

    common = {"pid": rank}
    found: list[dict[str, Any]] = [
        {
            "name": "process_name",
            "ph": "M",
            **common,
            "args": {"name": f"rank {rank} on {host}"},
        }
    ]
    for row, name in enumerate(_ROWS):
        named = {"name": "thread_name", "ph": "M", "tid": row, "args": {"name": name}}
        found.append({**named, **common})
    for span in spans:
        one = {"name": span.name, "cat": span.kind, "tid": _ROWS.index(span.kind)}
        length = round((span.end - span.start) * 1e6, 1)
        timed = {"ph": "X", "ts": at(span.start), "dur": length}
        found.append({**one, **common, **timed, "args": {"step": span.step}})
    for record in records:
        one = {"name": record.name, "cat": "collectives", "tid": len(_ROWS) - 1}
        begin = {**one, **common, "ts": at(record.start), "args": asdict(record)}
        if record.end is None:
            found.append({**begin, "ph": "i", "s": "t"})
            continue
        number = f"{rank}.{record.sequence}"
        found.append({**begin, "ph": "b", "id": number})
        found.append({**one, **common, "ph": "e", "id": number, "ts": at(record.end)})
    return found
