"""Traces that `mlxdist run --timeline` wrote: checked, and as intervals of each rank.

A trace is in Chrome's Trace Event Format, the JSON object with `traceEvents`. Times are
in microseconds there, and in seconds here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import NamedTuple

from ..launcher.private_files import read_text

Event = Mapping[str, object]

_WANTED = "wanted a trace that `mlxdist run --timeline` of this version wrote"
_ROWS = ("call", "phase", "waiting")
_PHASES = frozenset("MXbei")


class Interval(NamedTuple):
    """A part of a rank's time, in seconds: a call, a phase, or a wait."""

    start: float
    end: float
    name: str
    step: int


class Collective(NamedTuple):
    """A collective of a rank, in seconds; `end` is None where only its start is known.

    Collectives of the same sequence number belong together on all ranks.
    """

    sequence: int
    start: float
    end: float | None


@dataclass(frozen=True)
class RankTrace:
    """The events of one rank, in the order of their starts.

    Attributes:
        size: of the world.
        start, end: when the rank joined the world and left it.
        clock_error: what its times may be off by, against rank 0's.
        overlaps: whether collectives proceed while the rank computes.
        is_complete: whether no event was dropped, and the rank ran to its end.
    """

    rank: int
    size: int
    host: str
    start: float
    end: float
    clock_error: float
    overlaps: bool
    is_complete: bool
    calls: list[Interval] = field(default_factory=list)
    phases: list[Interval] = field(default_factory=list)
    waits: list[Interval] = field(default_factory=list)
    collectives: list[Collective] = field(default_factory=list)


def read_trace(path: Path) -> list[RankTrace]:
    """Read a trace, and return its ranks in their order.

    Raises:
        OSError: the file can't be read.
        ValueError: it is no valid trace, or none of `mlxdist run --timeline`.
    """
    try:
        trace = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    events = trace.get("traceEvents") if isinstance(trace, dict) else None
    if not isinstance(events, list):
        raise ValueError(f"{path} has no list of traceEvents, as a Chrome trace has")
    if not events:
        raise ValueError(
            f"{path} has no events: the job still runs, or it was killed before it "
            "could write them"
        )
    problem = next(problems(events), None)
    if problem is not None:
        raise ValueError(f"{path} is no valid trace: {problem}")
    try:
        ranks = _ranks(events)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path}: an event lacks {error}; {_WANTED}") from None
    if not ranks:
        raise ValueError(f"{path} names no rank; {_WANTED}")
    return ranks


# -- Chrome's format


def problems(events: Sequence[object]) -> Iterator[str]:
    """Yield what is wrong with events, by the rules of Chrome's format."""
    valid: list[Event] = []
    for index, event in enumerate(events):
        problem = _problem(event)
        if problem:
            yield f"event {index} {problem}"
        elif isinstance(event, Mapping):
            valid.append(event)
    yield from _nesting_problems(valid)
    yield from _pairing_problems(valid)


def _problem(event: object) -> str:
    """Return what is wrong with one event; "" if nothing is."""
    if not isinstance(event, Mapping):
        return "is no object"
    if not isinstance(event.get("name"), str):
        return "has no name"
    phase = event.get("ph")
    if not isinstance(phase, str) or phase not in _PHASES:
        return f"has ph {phase!r}, wanted one of {', '.join(sorted(_PHASES))}"
    if not isinstance(event.get("cat", ""), str):
        return "has a cat that is no text"
    if not isinstance(event.get("args", {}), Mapping):
        return "has args that are no object"
    if not _is_integer(event.get("pid")):
        return "has no integer pid"
    if phase == "M":
        return ""
    if not _is_integer(event.get("tid")):
        return "has no integer tid"
    if not _is_number(event.get("ts")):
        return "has no ts in microseconds"
    if phase == "X" and not (
        _is_number(event.get("dur")) and _number(event["dur"]) >= 0
    ):
        return "has no dur of 0 or more microseconds"
    if phase in "be" and not isinstance(event.get("id"), str | int):
        return "has no id"
    return ""


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and -1e18 < value < 1e18  # type: ignore[operator]


def _number(value: object) -> float:
    if not _is_number(value):
        raise ValueError("a number")
    return float(value)  # type: ignore[arg-type]


def _nesting_problems(events: Iterable[Event]) -> Iterator[str]:
    """Complete events of a row must not overlap, unless one contains the other."""
    rows: dict[tuple[object, object], list[Event]] = {}
    for event in events:
        if event["ph"] == "X":
            rows.setdefault((event["pid"], event["tid"]), []).append(event)
    for (pid, tid), row in rows.items():
        row.sort(key=lambda event: (_number(event["ts"]), -_number(event["dur"])))
        open_ends: list[float] = []
        for event in row:
            start = _number(event["ts"])
            end = start + _number(event["dur"])
            while open_ends and open_ends[-1] <= start + 0.01:
                open_ends.pop()
            if open_ends and end > open_ends[-1] + 0.01:
                yield f"of row {tid} of process {pid} overlaps another at ts {start}"
            open_ends.append(end)


def _pairing_problems(events: Iterable[Event]) -> Iterator[str]:
    """Each asynchronous event must begin once, and end once, in this order."""
    begins: dict[tuple[object, object], float] = {}
    for event in sorted(
        (event for event in events if event["ph"] in ("b", "e")),
        key=lambda event: (_number(event["ts"]), event["ph"]),
    ):
        key = (event.get("cat"), event["id"])
        if event["ph"] == "b":
            if key in begins:
                yield f"{key[1]} begins twice"
            begins[key] = _number(event["ts"])
        elif begins.pop(key, None) is None:
            yield f"{key[1]} ends and did not begin"
    for _, name in begins:
        yield f"{name} does not end"


# -- what mlxdist writes


def _ranks(events: Iterable[Event]) -> list[RankTrace]:
    ranks: dict[object, RankTrace] = {}
    rest: list[Event] = []
    for event in events:
        if event["name"] == "process_name" and event["ph"] == "M":
            args = event["args"]
            assert isinstance(args, Mapping)
            if "rank" in args:
                ranks[event["pid"]] = _rank(args)
        elif event["ph"] != "M":
            rest.append(event)
    ends = {event["id"]: _seconds(event["ts"]) for event in rest if event["ph"] == "e"}
    for event in rest:
        if event["pid"] in ranks:
            _add(ranks[event["pid"]], event, ends)
    for trace in ranks.values():
        for intervals in (trace.calls, trace.phases, trace.waits):
            intervals.sort()
        trace.collectives.sort(key=lambda collective: collective.start)
    return [_clipped(ranks[pid]) for pid in sorted(ranks, key=lambda p: ranks[p].rank)]


def _rank(args: Mapping[str, object]) -> RankTrace:
    if not all(_is_integer(args[name]) for name in ("rank", "size")):
        raise ValueError("a rank")
    start, end = _seconds(args["start"]), _seconds(args["end"])
    return RankTrace(
        rank=int(str(args["rank"])),
        size=int(str(args["size"])),
        host=str(args["host"]),
        start=start,
        end=max(start, end),
        clock_error=_seconds(args["clock_error"]),
        overlaps=bool(args["overlaps"]),
        is_complete=bool(args["is_complete"]),
    )


def _add(trace: RankTrace, event: Event, ends: Mapping[object, float]) -> None:
    """Add an event to its rank."""
    args, category, start = event.get("args"), event.get("cat"), _seconds(event["ts"])
    if event["ph"] == "X" and category in _ROWS:
        row = (trace.calls, trace.phases, trace.waits)[_ROWS.index(str(category))]
        step = args.get("step", 0) if isinstance(args, Mapping) else 0
        end = start + _seconds(event["dur"])
        row.append(Interval(start, end, str(event["name"]), int(_number(step))))
    elif category == "collectives" and event["ph"] in ("b", "i"):
        assert isinstance(args, Mapping)
        sequence = int(_number(args["sequence"]))
        end_time = ends.get(event["id"]) if event["ph"] == "b" else None
        trace.collectives.append(Collective(sequence, start, end_time))


def _clipped(trace: RankTrace) -> RankTrace:
    """Return a rank whose time begins with its first event, if it lacks others."""
    if trace.is_complete:
        return trace
    starts = [row[0].start for row in (trace.calls, trace.phases, trace.waits) if row]
    values = {**vars(trace), "start": min([*starts, trace.end])}
    return RankTrace(**values)


def _seconds(microseconds: object) -> float:
    seconds = _number(microseconds) / 1e6
    if not isfinite(seconds):
        raise ValueError("a finite time")
    return seconds
