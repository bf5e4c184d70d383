"""Events of one rank in Chrome's trace format, with times in microseconds.

Each rank is a process with four rows: its calls, their phases, its waits for other
ranks, and its collectives, which may overlap and name their bucket. A collective of the
native transport is finished by MLX, so only its start is known.

Times count from the start of the job: as numbers of 64 bits, times since the epoch
would be rounded to a quarter of a microsecond.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from ..comm.flight_recorder import Record, Span
from .clocks import Alignment

Event = dict[str, object]

_ROWS = ("call", "phase", "waiting", "collectives")


@dataclass(frozen=True)
class Process:
    """What a trace says of a rank as a whole, in the `args` of its process_name.

    Attributes:
        size: of the world.
        start, end: when the rank joined the world and left it, in seconds since the
            epoch on its own clock.
        origin: when the first rank joined, in seconds since the epoch on rank 0's
            clock: the time from which all events count.
        overlaps: whether collectives proceed while the rank computes.
        is_complete: whether no event was dropped, and the rank ran to its end.
    """

    rank: int
    size: int
    host: str
    start: float
    end: float
    origin: float
    alignment: Alignment
    overlaps: bool
    is_complete: bool

    def microseconds(self, local: float) -> float:
        """Return a time of this rank's clock as one of the trace."""
        return round((self.alignment.on_rank_0(local) - self.origin) * 1e6, 2)

    def events(self, spans: Iterable[Span], records: Iterable[Record]) -> list[Event]:
        """Return all events of the rank."""
        result: list[Event] = [self._name("process_name", self._args())]
        result += [
            {**self._name("thread_name", {"name": name}), "tid": row}
            for row, name in enumerate(_ROWS)
        ]
        result += [self._span_event(span) for span in spans]
        for record in records:
            result += self._record_events(record)
        return result

    def _args(self) -> dict[str, object]:
        return {
            "name": f"rank {self.rank} on {self.host}",
            "rank": self.rank,
            "size": self.size,
            "host": self.host,
            "start": self.microseconds(self.start),
            "end": self.microseconds(self.end),
            "origin": self.origin,
            "clock_error": round(self.alignment.error * 1e6, 2),
            "overlaps": self.overlaps,
            "is_complete": self.is_complete,
        }

    def _name(self, kind: str, args: dict[str, object]) -> Event:
        return {"name": kind, "ph": "M", "pid": self.rank, "args": args}

    def _span_event(self, span: Span) -> Event:
        start, end = self.microseconds(span.start), self.microseconds(span.end)
        return {
            "name": span.name,
            "cat": span.kind,
            "pid": self.rank,
            "tid": _ROWS.index(span.kind),
            "ph": "X",
            "ts": start,
            "dur": max(0.0, round(end - start, 2)),  # a clock may have been set back
            "args": {"step": span.step},
        }

    def _record_events(self, record: Record) -> list[Event]:
        """Return the start and the end of a collective, or its start alone."""
        common: Event = {
            "name": f"{record.name}, {record.contents}".removesuffix(", "),
            "cat": "collectives",
            "pid": self.rank,
            "tid": _ROWS.index("collectives"),
        }
        start = self.microseconds(record.start)
        begin = {**common, "ts": start, "args": asdict(record)}
        if record.end is None:
            return [{**begin, "ph": "i", "s": "t"}]
        common["id"] = begin["id"] = f"{self.rank}.{record.sequence}"
        end = max(start, self.microseconds(record.end))
        return [{**begin, "ph": "b"}, {**common, "ph": "e", "ts": end}]
