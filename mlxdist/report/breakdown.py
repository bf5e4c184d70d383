"""Where the time of a run went, by rank: the summary of a timeline.

Each moment of a rank's main thread is in exactly one part, so that the parts add up to
its time in the world:

    computing  your own code after the first step began, and gradients that are
               evaluated in update(); loading data and Python count here too
    updating   the wrapped optimizer's update of this rank's shard
    wire       waiting for messages, while no rank is late
    waiting    waiting for a rank that is late: `waiting.py` says when
    other      what comes before the first step, and other calls of mlxdist, such as
               checkpoints

Messages that travel while the rank computes cost it nothing: they are in no part, and
`overlapped` has their time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import NamedTuple, TypeVar

from .trace import Interval, RankTrace, read_trace
from .waiting import Wait, Waits

PARTS = ("computing", "updating", "wire", "waiting", "other")

_STEPS = (".update", ".minimize", ".apply_gradients")
_UPDATE_PHASE = "optimizer and parameter exchange"
_NOTICEABLE = 0.01  # of the time: below that, no rank is called a straggler

Parts = Mapping[str, float]


@dataclass(frozen=True)
class RankBreakdown:
    """The time of one rank, in seconds.

    Attributes:
        wall: from joining the world to leaving it: the sum of `parts`.
        parts: by the names of `PARTS`.
        before_first_step: a part of "other".
        overlapped: in which collectives proceeded while the rank did not wait.
        late: for which it waited, by rank: the sum is the part "waiting".
        is_complete: whether the trace has all of the rank's time.
    """

    rank: int
    host: str
    wall: float
    parts: Parts
    before_first_step: float
    overlapped: float
    late: Mapping[int, float]
    is_complete: bool


@dataclass(frozen=True)
class Straggler:
    """The rank for which the others wait longest.

    Attributes:
        per_step: seconds of a step that each other rank waits for it, on average.
        steps: in how many steps the others wait longer for it than for any other rank.
        is_noticeable: whether it costs the others 1% of their time or more.
    """

    rank: int
    host: str
    per_step: float
    steps: int
    is_noticeable: bool


@dataclass(frozen=True)
class Breakdown:
    """The time of all ranks.

    Attributes:
        steps: how many are in the trace.
        step_time: seconds from the start of a step to that of the next, on average;
            None with fewer than two.
        straggler: None where no rank waits for another.
        clock_error: seconds by which times of two hosts may be off.
        starts_only: how many collectives have no end in the trace, on all ranks.
        lost: how many ranks are not in the trace.
    """

    ranks: tuple[RankBreakdown, ...]
    steps: int
    step_time: float | None
    straggler: Straggler | None
    clock_error: float
    starts_only: int
    lost: int

    @property
    def wall(self) -> float:
        """The time of all ranks, added up."""
        return sum(rank.wall for rank in self.ranks)

    @property
    def parts(self) -> Parts:
        """The parts of all ranks, added up, in seconds."""
        return {name: sum(r.parts[name] for r in self.ranks) for name in PARTS}


def summarize(path: Path | str) -> Breakdown:
    """Return where the time of a run went.

    Args:
        path: of the trace that `mlxdist run --timeline` wrote.

    Raises:
        OSError: the file can't be read.
        ValueError: it is no valid trace.
    """
    return break_down(read_trace(Path(path)))


def break_down(traces: Sequence[RankTrace]) -> Breakdown:
    """Return where the time of ranks went."""
    waits, late = Waits(traces), _Lateness()
    ranks = []
    for index, trace in enumerate(traces):
        parts_of_waits = list(waits.of(index))
        ranks.append(_rank(trace, parts_of_waits, late))
    starts = [_step_starts(trace) for trace in traces]
    steps = max(map(len, starts))
    times = [(x[-1] - x[0]) / (len(x) - 1) for x in starts if len(x) > 1]
    return Breakdown(
        tuple(ranks),
        steps,
        fmean(times) if times else None,
        late.straggler(traces, steps, sum(rank.wall for rank in ranks)),
        max(trace.clock_error for trace in traces),
        sum(each.end is None for trace in traces for each in trace.collectives),
        max(0, traces[0].size - len(traces)),
    )


class _Lateness:
    """For how long each rank keeps others waiting, by step."""

    def __init__(self) -> None:
        self._seconds: defaultdict[int, defaultdict[int, float]] = defaultdict(
            lambda: defaultdict(float)
        )

    def add(self, wait: Wait) -> None:
        assert wait.late is not None
        self._seconds[wait.late][wait.step] += wait.end - wait.start

    def straggler(
        self, traces: Sequence[RankTrace], steps: int, wall: float
    ) -> Straggler | None:
        if not self._seconds:
            return None
        totals = {rank: sum(x.values()) for rank, x in self._seconds.items()}
        worst = max(totals, key=lambda rank: totals[rank])
        by_step: dict[int, dict[int, float]] = {}
        for rank, seconds in self._seconds.items():
            for step, time in seconds.items():
                by_step.setdefault(step, {})[rank] = time
        last = sum(max(x, key=lambda rank: x[rank]) == worst for x in by_step.values())
        host = next(trace.host for trace in traces if trace.rank == worst)
        others = max(1, len(traces) - 1)
        return Straggler(
            worst,
            host,
            totals[worst] / others / max(1, steps),
            min(last, steps),
            totals[worst] >= _NOTICEABLE * wall,
        )


class _Span(NamedTuple):
    start: float
    end: float
    part: str


_Part = TypeVar("_Part", Wait, _Span)


def _rank(
    trace: RankTrace, waits: Sequence[Wait], lateness: _Lateness
) -> RankBreakdown:
    starts = _step_starts(trace)
    first = min(max(starts[0], trace.start), trace.end) if starts else trace.start
    parts = dict.fromkeys(PARTS, 0.0)
    parts["other"] = first - trace.start
    late: defaultdict[int, float] = defaultdict(float)
    inside = list(_clip(waits, first, trace.end))
    for wait in inside:
        parts["wire" if wait.late is None else "waiting"] += wait.end - wait.start
        if wait.late is not None:
            late[wait.late] += wait.end - wait.start
            lateness.add(wait)
    for span in _without(_spans(trace, first), inside):
        parts[span.part] += span.end - span.start
    under_way = list(_clip(_under_way(trace), first, trace.end))
    overlapped = sum(x.end - x.start for x in _without(under_way, inside))
    return RankBreakdown(
        trace.rank,
        trace.host,
        trace.end - trace.start,
        parts,
        first - trace.start,
        overlapped if trace.overlaps else 0.0,
        dict(late),
        trace.is_complete,
    )


def _step_starts(trace: RankTrace) -> list[float]:
    return [call.start for call in trace.calls if _is_step(call)]


def _is_step(call: Interval) -> bool:
    return call.name.partition(" without ")[0].endswith(_STEPS)


def _spans(trace: RankTrace, first: float) -> Iterator[_Span]:
    """Yield what the main thread does from the first step on, as if it never waited."""
    updates = [x for x in trace.phases if x.name == _UPDATE_PHASE and x.end > first]
    position, now = 0, first
    for call in trace.calls:
        start, end = max(call.start, now), min(call.end, trace.end)
        if end <= start:
            continue
        yield _Span(now, start, "computing")
        now = start
        while _is_step(call) and position < len(updates):
            update = updates[position]
            if update.start >= end:
                break
            begin, stop = max(update.start, now), min(update.end, end)
            if stop > begin:
                yield _Span(now, begin, "computing")
                yield _Span(begin, stop, "updating")
                now = stop
            position += 1
        yield _Span(now, end, "computing" if _is_step(call) else "other")
        now = end
    yield _Span(now, trace.end, "computing")


def _under_way(trace: RankTrace) -> Iterator[_Span]:
    """Yield when one collective or more is under way, of those whose end is known."""
    start = end = trace.start
    for each in trace.collectives:
        if each.end is None:
            continue
        if each.start > end:
            yield _Span(start, end, "wire")
            start = each.start
        end = max(end, each.end)
    yield _Span(start, end, "wire")


def _clip(spans: Iterable[_Part], start: float, end: float) -> Iterator[_Part]:
    for span in spans:
        left, right = max(span.start, start), min(span.end, end)
        if right > left:
            yield span._replace(start=left, end=right)


def _without(spans: Iterable[_Span], waits: Sequence[Wait]) -> Iterator[_Span]:
    """Yield what is left of spans without waits. Both are sorted and don't overlap."""
    first = 0
    for span in spans:
        now = span.start
        while first < len(waits) and waits[first].end <= now:
            first += 1
        position = first
        while position < len(waits) and waits[position].start < span.end:
            if waits[position].start > now:
                yield span._replace(start=now, end=waits[position].start)
            now = max(now, waits[position].end)
            position += 1
        if span.end > now:
            yield span._replace(start=now)
