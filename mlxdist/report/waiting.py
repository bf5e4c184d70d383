"""For what a rank waits: for a rank that is late, or for the wire.

While a rank waits, the oldest collective that it has started and that is not complete
keeps it. It waits for a rank that is late

- until each rank has started that collective, and
- while a rank that sends and receives only inside its own waits computes.

The rest is the wire: messages on their way, and what arrives being added up. Where no
collective is known, as in a barrier, it waits until all ranks do. A collective whose
end is not known counts until the next one starts, and is late while a rank computes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from .trace import Collective, Interval, RankTrace


class Wait(NamedTuple):
    """A part of a wait, in seconds; `late` is the rank it is for, None the wire."""

    start: float
    end: float
    step: int
    late: int | None


class _Late(NamedTuple):
    """A rank that keeps another one waiting, from `start` to `end`."""

    start: float
    end: float
    rank: int


class Waits:
    """The waits of all ranks of a job.

    Args:
        ranks: with the events of each, in their order.
    """

    def __init__(self, ranks: Sequence[RankTrace]):
        self._ranks = ranks
        self._waits = [_without_overlaps(rank.waits) for rank in ranks]
        self._collectives = [_with_ends(rank) for rank in ranks]
        self._by_sequence = [
            {each.sequence: each for each in collectives}
            for collectives in self._collectives
        ]

    def of(self, index: int) -> Iterator[Wait]:
        """Yield the parts of one rank's waits, which don't overlap, in their order."""
        collectives, first = self._collectives[index], 0
        for wait in self._waits[index]:
            now = wait.start
            while now < wait.end:
                while first < len(collectives) and collectives[first].end <= now:
                    first += 1
                current, end = _oldest(collectives, first, now)
                end = min(end, wait.end)
                late = self._late(index, current, now, end)
                yield from _parts(late, now, end, wait.step)
                now = end

    def _late(
        self, index: int, current: _Known | None, start: float, end: float
    ) -> list[_Late]:
        """Return which ranks keep one waiting, each for how long."""
        result: list[_Late] = []
        for other, rank in enumerate(self._ranks):
            if other == index:
                continue
            until = end
            if current is not None:
                theirs = self._by_sequence[other].get(current.sequence)
                if theirs is None:  # it died, or the event was dropped
                    continue
                if theirs.start > start:
                    result.append(_Late(start, min(end, theirs.start), rank.rank))
                if current.is_complete and rank.overlaps:
                    continue
                until = min(end, theirs.end) if current.is_complete else end
            result += self._computing(other, start, until)
        return result

    def _computing(self, index: int, start: float, end: float) -> Iterator[_Late]:
        """Yield when a rank does not wait, between two times."""
        waits, rank = self._waits[index], self._ranks[index].rank
        position = max(0, bisect_right(waits, start, key=lambda wait: wait.start) - 1)
        now = start
        while now < end:
            following = waits[position] if position < len(waits) else None
            stop = end if following is None else min(end, following.start)
            if stop > now:
                yield _Late(now, stop, rank)
            now = end if following is None else max(now, following.end)
            position += 1


class _Known(NamedTuple):
    """A collective with an end, which may be that of the next one's start."""

    sequence: int
    start: float
    end: float
    is_complete: bool


def _with_ends(rank: RankTrace) -> list[_Known]:
    result: list[_Known] = []
    following: Collective | None = None
    for each in reversed(rank.collectives):
        end = each.end
        if end is None:
            end = rank.end if following is None else following.start
        result.append(_Known(each.sequence, each.start, end, each.end is not None))
        following = each
    return result[::-1]


def _oldest(
    collectives: Sequence[_Known], first: int, now: float
) -> tuple[_Known | None, float]:
    """Return the oldest collective under way, and until when it is that one.

    Args:
        first: the first one that is not complete.
    """
    if first == len(collectives):
        return None, float("inf")
    oldest = collectives[first]
    return (None, oldest.start) if oldest.start > now else (oldest, oldest.end)


def _without_overlaps(waits: Sequence[Interval]) -> list[Interval]:
    result: list[Interval] = []
    for wait in waits:
        start = max(wait.start, result[-1].end) if result else wait.start
        if wait.end > start:
            result.append(wait._replace(start=start))
    return result


def _parts(
    late: Sequence[_Late], start: float, end: float, step: int
) -> Iterator[Wait]:
    """Cut a wait where another rank becomes the last, or none is late any more."""
    times = {start, end, *(x.start for x in late), *(x.end for x in late)}
    points = sorted(time for time in times if start <= time <= end)
    for left, right in pairwise(points):
        at_work = [x for x in late if x.start <= left and right <= x.end]
        last = max(at_work, key=lambda x: x.end, default=None)
        yield Wait(left, right, step, None if last is None else last.rank)
