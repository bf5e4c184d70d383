"""Who writes which part of a checkpoint into which place of its file. Pure integers.

All ranks come to the same contents by themselves, from what each says that it holds:
what all of them hold is cut into shares of as many bytes as evens out their files, and
what one rank alone holds it writes itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from ..layout.sharding import Plan
from .manifest import Piece, SavedArray
from .safetensors import Tensor, header

# What a rank says that it holds: {kind: {path: {key: [dtype, *shape]}}}.
Held = Mapping[str, Mapping[str, Mapping[str, Sequence[Any]]]]


class Part(NamedTuple):
    """Elements [start, stop) of an array, which a rank writes."""

    array: SavedArray
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        return (self.stop - self.start) * self.array.item_size

    @property
    def tensor(self) -> Tensor:
        """As it stands in the file: whole, or a flat slice named by its range."""
        array, (start, stop) = self.array, self[1:]
        if (start, stop) == (0, array.size):
            return Tensor(array.name, array.dtype, array.shape, self.nbytes)
        name = f"{array.name}[{start}:{stop}]"
        return Tensor(name, array.dtype, (stop - start,), self.nbytes)


Shares = list[list[Part]]  # for each rank, in the order of its file


def sharded(held: Sequence[Held], plan: Plan) -> Shares:
    """What each rank writes of arrays that are cut by a plan, or have one owner.

    Args:
        held: what each rank says that it holds.
    """
    shares: Shares = [[] for _ in held]
    ranges = [plan.shard(rank) for rank in range(plan.ranks)]
    for kind in sorted(held[0]):
        for entry in plan.entries:
            holders = [r for r, own in enumerate(held) if entry.path in own[kind]]
            for key in sorted(held[holders[0]][kind][entry.path]) if holders else ():
                told = {r: held[r][kind][entry.path][key] for r in holders}
                dtype, *shape = told[holders[0]]
                spans = {r: ranges[r][entry.path] for r in holders}
                if _is_cut(told, spans, entry.size, plan):
                    array = SavedArray(kind, entry.path, key, dtype, entry.shape)
                    for rank, span in spans.items():
                        shares[rank].append(Part(array, *span))
                else:
                    array = SavedArray(kind, entry.path, key, dtype, tuple(shape))
                    shares[holders[0]].append(Part(array, 0, array.size))
    return shares


def _is_cut(
    told: Mapping[int, Sequence[Any]],
    spans: Mapping[int, tuple[int, int]],
    size: int,
    plan: Plan,
) -> bool:
    """Whether arrays are slices of a parameter's shape, and not one for all of it."""
    if plan.strategy != "elements":
        return False
    fits = all(
        list(told[r][1:]) == [stop - start] for r, (start, stop) in spans.items()
    )
    return fits and sum(stop - start for start, stop in spans.values()) == size


def spread(shares: Shares, arrays: Sequence[SavedArray]) -> None:
    """Adds arrays that all ranks hold, cut so that the ranks' files even out."""
    quotas = _quotas(
        [sum(part.nbytes for part in share) for share in shares],
        sum(array.nbytes for array in arrays),
    )
    rank = 0
    for array in arrays:
        start = 0
        while start < array.size:
            last = rank == len(shares) - 1
            room = array.size if last else quotas[rank] // array.item_size
            stop = min(array.size, start + room)
            if stop > start:
                shares[rank].append(Part(array, start, stop))
                quotas[rank] -= (stop - start) * array.item_size
                start = stop
            if start < array.size:
                rank += 1


def _quotas(held: Sequence[int], total: int) -> list[int]:
    """Bytes that each rank takes of a total, so that the fullest holds the least."""
    ranks = sorted(range(len(held)), key=lambda rank: held[rank])
    quotas = [0] * len(held)
    below = 0
    for count, rank in enumerate(ranks, 1):
        below += held[rank]
        following = held[ranks[count]] if count < len(ranks) else None
        if following is None or following * count - below >= total:
            level, extra = divmod(total + below, count)
            for place, one in enumerate(ranks[:count]):
                quotas[one] = level - held[one] + (place < extra)
            break
    return quotas


class Layout(NamedTuple):
    """The ranks' files before they are written: parts in order, and their headers."""

    parts: Shares
    headers: list[bytes]
    arrays: tuple[SavedArray, ...]


def lay_out(shares: Shares, empty: Sequence[SavedArray], about: str) -> Layout:
    """Puts each rank's parts one behind the other, and pieces into the arrays.

    Args:
        empty: arrays without elements, which stand in no file.
        about: what the files say of themselves.
    """
    pieces: dict[SavedArray, list[Piece]] = {array: [] for array in empty}
    headers, ordered = [], []
    for rank, share in enumerate(shares):
        # Wide ones first, so that all are aligned.
        parts = sorted(
            (part for part in share if part.nbytes), key=lambda p: -p.array.item_size
        )
        text = f"rank {rank} of {len(shares)}, {about}"
        headers.append(header([part.tensor for part in parts], {"mlxdist": text}))
        offset = len(headers[-1])
        for part in parts:
            found = pieces.setdefault(part.array, [])
            found.append(Piece(part.start, part.stop, rank, offset))
            offset += part.nbytes
        for part in share:
            pieces.setdefault(part.array, [])
        ordered.append(parts)
    arrays = tuple(
        replace(array, pieces=tuple(sorted(found))) for array, found in pieces.items()
    )
    return Layout(ordered, headers, arrays)
