"""Layout of the ranks' files: which rank writes which elements, and where. Pure.

Every rank computes the same layout from all ranks' reports. A rank writes the state
that is on it alone. What all ranks hold is divided so that their files have equal size.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from .manifest import Piece, SavedArray
from .safetensors import Tensor, header, with_unique_names


class LocalPart(NamedTuple):
    """Optimizer state on one rank: elements [start, stop) of an array of `shape`.

    Attributes:
        checksum: of an array without dimensions, which several ranks may have; 0 of
            any other array.
    """

    path: str
    key: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int
    checksum: int = 0

    @property
    def is_whole(self) -> bool:
        return (self.start, self.stop) == (0, math.prod(self.shape))


class Part(NamedTuple):
    """Elements [start, stop) of an array, written by one rank."""

    array: SavedArray
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        return (self.stop - self.start) * self.array.item_size

    @property
    def tensor(self) -> Tensor:
        """The tensor in the file: the whole array, or a slice named by its range."""
        array, (start, stop) = self.array, self[1:]
        if (start, stop) == (0, array.size):
            return Tensor(array.name, array.dtype, array.shape, self.nbytes)
        name = f"{array.name}[{start}:{stop}]"
        return Tensor(name, array.dtype, (stop - start,), self.nbytes)


def scalar_problem(reports: Sequence[Sequence[LocalPart]]) -> str | None:
    """Return which state without dimensions differs between ranks, or None."""
    ranks: dict[tuple[str, str], dict[int, int]] = defaultdict(dict)
    for rank, parts in enumerate(reports):
        for part in parts:
            if not part.shape:
                ranks[part.path, part.key].setdefault(part.checksum, rank)
    for (path, key), by_checksum in ranks.items():
        if len(by_checksum) > 1:
            first, second, *_ = by_checksum.values()
            return f"the state {key} of {path} differs on ranks {first} and {second}"
    return None


Shares = list[list[Part]]  # for each rank, in the order of its file


def assign_sharded(
    reports: Sequence[Sequence[LocalPart]], paths: Sequence[str]
) -> Shares:
    """Return the ranks' shares of state that is not the same on all of them.

    The first rank that has a whole array writes it. Otherwise each writes its slice.

    Args:
        reports: each rank's parts.
        paths: of the parameters, in the order in which their state is written.
    """
    shares: Shares = [[] for _ in reports]
    state: dict[str, dict[str, dict[int, LocalPart]]]
    state = defaultdict(lambda: defaultdict(dict))
    for rank, parts in enumerate(reports):
        for part in parts:
            state[part.path][part.key][rank] = part
    for path in paths:
        for key, by_rank in sorted(state[path].items()):
            whole = [rank for rank, part in by_rank.items() if part.is_whole]
            for rank in whole[:1] or by_rank:
                part = by_rank[rank]
                array = SavedArray("optimizer", path, key, part.dtype, part.shape)
                shares[rank].append(Part(array, part.start, part.stop))
    return shares


def spread(shares: Shares, arrays: Sequence[SavedArray]) -> None:
    """Add arrays that all ranks hold, cut so that the files have equal size."""
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


def _quotas(used: Sequence[int], total: int) -> list[int]:
    """Return the bytes of `total` for each rank that minimize the largest file."""
    ranks = sorted(range(len(used)), key=lambda rank: used[rank])
    quotas = [0] * len(used)
    below = 0
    for count, rank in enumerate(ranks, 1):
        below += used[rank]
        following = used[ranks[count]] if count < len(ranks) else None
        if following is None or following * count - below >= total:
            level, remainder = divmod(total + below, count)
            for index, filled in enumerate(ranks[:count]):
                quotas[filled] = level - used[filled] + (index < remainder)
            break
    return quotas


class Layout(NamedTuple):
    """The files to be written: each rank's parts in order, and its file's header."""

    parts: Shares
    headers: list[bytes]
    arrays: tuple[SavedArray, ...]


def lay_out(shares: Shares, empty: Sequence[SavedArray], about: str) -> Layout:
    """Order each rank's parts in its file, and list the pieces of each array.

    Args:
        empty: arrays without elements, which are in no file.
        about: metadata for the files' headers.
    """
    pieces: dict[SavedArray, list[Piece]] = {array: [] for array in empty}
    headers, ordered = [], []
    for rank, share in enumerate(shares):
        # Wide dtypes first keep every array aligned.
        parts = sorted(
            (part for part in share if part.nbytes), key=lambda p: -p.array.item_size
        )
        text = f"rank {rank} of {len(shares)}, {about}"
        tensors = with_unique_names(part.tensor for part in parts)
        headers.append(header(tensors, {"mlxdist": text}))
        offset = len(headers[-1])
        for part in parts:
            piece = Piece(part.start, part.stop, rank, offset)
            pieces.setdefault(part.array, []).append(piece)
            offset += part.nbytes
        for part in share:
            pieces.setdefault(part.array, [])
        ordered.append(parts)
    arrays = tuple(
        msgspec.structs.replace(array, pieces=tuple(sorted(listed)))
        for array, listed in pieces.items()
    )
    return Layout(ordered, headers, arrays)
