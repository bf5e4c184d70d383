"""Flight recorder: the rank's current status and its most recent collectives.

The watchdog sends the status to the other ranks. When a job dies, the last few hundred
collectives are written to a file for the postmortem. Recording one costs about a
microsecond.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

MAX_RECORDS = 512
MAX_TIMELINE_RECORDS = 200_000

# The attribute of an exception that holds the status at the time it was raised.
_STATUS_ATTRIBUTE = "mlxdist_status"


@dataclass
class Record:
    """One collective: its name, the call it belongs to, its size and its times.

    Attributes:
        sequence: running number of the collective on this rank, from 1.
        name: of the collective, such as "all_sum".
        call: the mlxdist call that started it; "" outside of one.
        step: number of the optimizer step.
        elements, dtype, nbytes: of the payload.
        start, end: seconds since the epoch. `end` is None while the collective runs,
            and for collectives that MLX finishes by itself.
        contents: the bucket and its parameters; "" where it carries no bucket.
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
    contents: str = ""

    @property
    def signature(self) -> tuple[str, str, int, int, str]:
        """The fields that must be equal on all ranks for the same `sequence`.

        The bytes are not among them: ranks send parts of different sizes.
        """
        return (self.name, self.call, self.step, self.elements, self.dtype)

    def __str__(self) -> str:
        payload = f" of {self.elements} {self.dtype}" if self.elements else ""
        contents = f" ({self.contents})" if self.contents else ""
        call = f" in {self.call}, step {self.step}" if self.call else ""
        return f"{self.name}{payload}{contents}{call}"


@dataclass
class Status:
    """The current activity of a rank.

    Attributes:
        sequence: number of collectives started so far.
        step: number of the last optimizer step that was started.
        call: the mlxdist call that is running; "" in user code.
        phase: the part of the call that is running; "" if it has no parts.
        waiting: whether the rank waits for other ranks.
        leaving: whether the program has finished and the rank waits to exit.
        since: start of the current activity, in seconds of `time.monotonic`.
    """

    sequence: int = 0
    step: int = 0
    call: str = ""
    phase: str = ""
    waiting: bool = False
    leaving: bool = False
    since: float = field(default_factory=time.monotonic)

    def __str__(self) -> str:
        if self.leaving:
            return f"exiting, after step {self.step}"
        if not self.call:
            return f"in user code, after step {self.step}"
        phase = f", {self.phase}" if self.phase else ""
        return f"in {self.call}{phase}, step {self.step}"


@dataclass
class Waits:
    """Seconds that this rank has waited for other ranks: for slow ones, and the wire.

    Waits of MLX's own, as of a collective inside `mx.compile`, are not in it.

    Attributes:
        by_call: by the mlxdist call, such as "update"; "" outside of one.
    """

    by_call: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    def seconds(self, without: Collection[str] = ()) -> float:
        """Return the sum over all calls, but for some."""
        calls = list(self.by_call.items())  # another thread may add one meanwhile
        return sum(seconds for call, seconds in calls if call not in without)


@dataclass(frozen=True)
class Span:
    """A time span of a timeline, in seconds since the epoch.

    `kind` is "call", "phase" (a part of a call) or "waiting" (for other ranks).
    """

    kind: str
    name: str
    step: int
    start: float
    end: float


@dataclass(frozen=True)
class Failure:
    """Why a rank ended the job.

    Attributes:
        time: of the failure, in seconds since the epoch.
        activity: of the rank at that time, as in "in user code, after step 3".
        message: of the exception, as in "ValueError: x", or of the guard.
        location: the line of the user's code, as in "train.py:12, in main"; "" if
            unknown.
        traceback: lines of the exception's traceback; none for another failure.
    """

    time: float
    activity: str
    message: str
    location: str = ""
    traceback: list[str] = field(default_factory=list)

    def describe(self, ranks: str) -> str:
        """Return lines on the ranks that failed, with the error and its location."""
        first, *rest = self.message.splitlines() or [""]
        if not self.traceback:
            return "\n".join([f"{ranks} ended the job: it {first}", *rest])
        lines = [first, *rest, *([f"at {self.location}"] if self.location else [])]
        title = f"{ranks}, {self.activity}:"
        return "\n".join([title, *(f"  {line}" for line in lines)])


@dataclass(frozen=True)
class RankInfo:
    """Identity of a rank and the Python stack of its main thread, for a postmortem.

    Attributes:
        location: the line of the user's code in that stack.
        failure: None if another rank failed, or the job was ended from outside.
        notice: the other rank's description of its failure, if it sent one.
    """

    rank: int
    size: int
    host: str
    pid: int
    stack: list[str]
    location: str = ""
    failure: Failure | None = None
    notice: str = ""


class Recorder:
    """Status and recent collectives of this rank in one world.

    Args:
        parent: recorder of the world that this world was split from. Both share one
            status and one sum of waits, but only the parent numbers its collectives:
            the other parts of the parent run different ones.
    """

    def __init__(self, parent: Recorder | None = None) -> None:
        self._numbers_collectives = parent is None
        self.status: Status = Status() if parent is None else parent.status
        self.waits: Waits = Waits() if parent is None else parent.waits
        self.records: deque[Record] = deque(maxlen=MAX_RECORDS)
        self.spans: deque[Span] | None = None  # only recorded for a timeline
        self._phase_start = 0.0
        self._contents = ""
        self._on_failure: list[Callable[[], object]] = []

    def keep_timeline(self) -> None:
        """Record spans from now on, and keep the last 200 000 spans and records."""
        self.records = deque(self.records, maxlen=MAX_TIMELINE_RECORDS)
        self.spans = deque(maxlen=MAX_TIMELINE_RECORDS)

    def _add_span(self, kind: str, name: str, start: float) -> None:
        if self.spans is not None and name:
            self.spans.append(Span(kind, name, self.status.step, start, time.time()))

    @contextmanager
    def call(self, name: str, step: int | None = None) -> Iterator[None]:
        """Mark the body as an mlxdist call. Calls inside another call are ignored."""
        status = self.status
        if status.call:
            yield
            return
        status.call, status.since, start = name, time.monotonic(), time.time()
        if step is not None:
            status.step = step
        try:
            yield
        except BaseException as error:
            # Noted on the error, since the status is reset before it is reported.
            vars(error).setdefault(_STATUS_ATTRIBUTE, str(status))
            raise
        finally:
            self.phase("")
            self._add_span("call", name, start)
            status.call, status.since = "", time.monotonic()

    def status_at(self, error: BaseException) -> str:
        """Return the status at the time when `error` was raised."""
        return str(getattr(error, _STATUS_ATTRIBUTE, self.status))

    def phase(self, name: str) -> None:
        """Start the next phase of the current call; reports of a stall name it."""
        self._add_span("phase", self.status.phase, self._phase_start)
        self.status.phase, self._phase_start = name, time.time()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Mark the body as waiting for other ranks."""
        status = self.status
        status.waiting, status.since, start = True, time.monotonic(), time.time()
        try:
            yield
        finally:
            self._add_span("waiting", _waiting_name(status), start)
            end = time.monotonic()
            self.waits.by_call[status.call] += end - status.since
            status.waiting, status.since = False, end

    @contextmanager
    def carrying(self, contents: str) -> Iterator[None]:
        """Name the bucket of the collectives that are started in the body."""
        self._contents = contents
        try:
            yield
        finally:
            self._contents = ""

    def started(
        self, name: str, elements: int = 0, dtype: str = "", nbytes: int = 0
    ) -> Record:
        """Record the start of a collective. All ranks start them in the same order."""
        status = self.status
        status.sequence += self._numbers_collectives
        record = Record(
            status.sequence,
            name,
            status.call,
            status.step,
            elements,
            dtype.removeprefix("mlx.core."),
            nbytes,
            time.time(),
            contents=self._contents,
        )
        self.records.append(record)
        return record

    def on_failure(self, function: Callable[[], object]) -> None:
        """Call a function after the record is written, when the job fails."""
        self._on_failure.append(function)

    def handle_failure(self) -> None:
        """Call the functions of `on_failure`."""
        for function in self._on_failure:
            function()

    def text(self, info: RankInfo) -> str:
        """Return JSON: a line with info and status, then one for each record."""
        lines: list[dict[str, object]] = [{**asdict(info), **asdict(self.status)}]
        lines += [asdict(record) for record in list(self.records)]
        return "".join(json.dumps(line) + "\n" for line in lines)


def _waiting_name(status: Status) -> str:
    activity = status.phase or status.call
    return f"waiting in {activity}" if activity else "waiting"
