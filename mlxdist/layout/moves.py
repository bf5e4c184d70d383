"""Which elements of an array are sent, so that each rank has those that it wants."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

Span = tuple[int, int]  # elements [start, stop) of a flattened array


class Move(NamedTuple):
    """Elements [start, stop) that a rank sends to all others."""

    root: int
    start: int
    stop: int


def find_moves(has: Mapping[int, Span], wants: Mapping[int, Span]) -> list[Move]:
    """Return what has to be sent, each element once for all ranks that want the same.

    Args:
        has: by rank, the elements that it has.
        wants: by rank, the elements that it is to have. Those that it has already do
            not travel.

    Raises:
        ValueError: where no rank has an element that is wanted.
    """
    moves: dict[Move, None] = {}
    for rank, wanted in wants.items():
        missing = _without([wanted], has.get(rank, (0, 0)))
        for root, span in has.items():
            if not missing:
                break
            for start, stop in missing:
                low, high = max(start, span[0]), min(stop, span[1])
                if low < high:
                    moves[Move(root, low, high)] = None
            missing = _without(missing, span)
        if missing:
            raise ValueError(f"no rank has elements {missing[0]}")
    return list(moves)


def _without(spans: list[Span], removed: Span) -> list[Span]:
    """Return the parts of some spans that lie outside of another one."""
    parts = [
        part
        for start, stop in spans
        for part in (
            (start, min(stop, removed[0])),
            (max(start, removed[1]), stop),
        )
    ]
    return [(start, stop) for start, stop in parts if start < stop]
