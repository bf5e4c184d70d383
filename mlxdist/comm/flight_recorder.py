"""What this rank is doing and what it did last: for the watchdog and for a postmortem.

A flight recorder: the last few hundred collectives stay in memory and are written
when the job dies. Recording one costs about a microsecond.
"""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

KEPT = 512
KEPT_FOR_TIMELINE = 200_000


@dataclass
class Record:
    """One collective: what it was, on how much, from when to when.

    `sequence` counts them; ranks that have done the same have the same records but
    for the times, which are seconds since the epoch. `end` is None for one that was
    under way, or is MLX's to finish.
    """

    sequence: int
    name: str
    call: str
    step: int
    elements: int
    dtype: str
    nbytes: int
    start: float
    end: float | None = None


@dataclass
class Status:
    """Where a rank is. Travels to the other ranks' watchdogs a few times a second."""

    sequence: int = 0
    step: int = 0
    call: str = ""
    phase: str = ""
    waiting: bool = False
    leaving: bool = False
    since: float = field(default_factory=time.monotonic)

    def __str__(self) -> str:
        if self.leaving:
            return f"at its end, after step {self.step}"
        if not self.call:
            return f"in its own code, after step {self.step}"
        phase = f", {self.phase}" if self.phase else ""
        return f"in {self.call}{phase}, step {self.step}"


@dataclass(frozen=True)
class Span:
    """A part of this rank's time, in seconds since the epoch.

    `kind` is "call", "phase" (of a call) or "waiting" (for other ranks).
    """

    kind: str
    name: str
    step: int
    start: float
    end: float


class Recorder:
    """This rank's status and its last records. One for each world.

    Args:
        whole: the recorder of the world that this one's is a part of.
    """

    def __init__(self, whole: Recorder | None = None) -> None:
        # A part of a world shares the whole one's status, but what it does is not
        # counted: other parts do other things.
        self._counts = whole is None
        self.status: Status = Status() if whole is None else whole.status
        self.records: deque[Record] = deque(maxlen=KEPT)
        self.spans: deque[Span] | None = None  # where a timeline is wanted
        self._phase_began = 0.0

    def keep_timeline(self) -> None:
        """Keeps spans as well, and the last 200 000 of them and of the records."""
        self.records = deque(self.records, maxlen=KEPT_FOR_TIMELINE)
        self.spans = deque(maxlen=KEPT_FOR_TIMELINE)

    def _span(self, kind: str, name: str, start: float) -> None:
        if self.spans is not None and name:
            self.spans.append(Span(kind, name, self.status.step, start, time.time()))

    @contextmanager
    def call(self, name: str, step: int | None = None) -> Iterator[None]:
        """While the rank is in a call of mlxdist; calls inside it don't count."""
        status = self.status
        if status.call:
            yield
            return
        status.call, status.since, began = name, time.monotonic(), time.time()
        if step is not None:
            status.step = step
        try:
            yield
        except BaseException as error:
            # By the time that it is reported, the call is over.
            error.__dict__.setdefault("mlxdist_place", str(status))
            raise
        finally:
            self.phase("")
            self._span("call", name, began)
            status.call, status.since = "", time.monotonic()

    def phase(self, name: str) -> None:
        """What of a call comes now; a stall is told by it."""
        self._span("phase", self.status.phase, self._phase_began)
        self.status.phase, self._phase_began = name, time.time()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """While the rank waits for others."""
        status = self.status
        status.waiting, status.since, began = True, time.monotonic(), time.time()
        try:
            yield
        finally:
            self._span("waiting", status.call or "waiting", began)
            status.waiting, status.since = False, time.monotonic()

    def started(
        self, name: str, elements: int = 0, dtype: str = "", nbytes: int = 0
    ) -> Record:
        """Counts and records a collective, which all ranks begin in the same order."""
        status = self.status
        status.sequence += self._counts
        record = Record(
            status.sequence,
            name,
            status.call,
            status.step,
            elements,
            dtype,
            nbytes,
            time.time(),
        )
        self.records.append(record)
        return record

    def write(self, folder: Path, rank: int, about: dict[str, Any]) -> Path:
        """Writes `rank-<r>.jsonl`: a line on the rank, then one a record.

        Written beside and renamed, so that there is a whole file or none.
        """
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"rank-{rank}.jsonl"
        beside = folder / f".rank-{rank}.{os.getpid()}"
        first = {**about, **asdict(self.status)}
        lines = [first, *(asdict(record) for record in list(self.records))]
        beside.write_text("".join(json.dumps(line) + "\n" for line in lines))
        beside.replace(path)
        return path
