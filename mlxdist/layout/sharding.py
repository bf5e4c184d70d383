"""Sharding: which rank owns which part of which bucket.

Pure integers, so that a world of 1024 ranks is planned without MPI. Each strategy keeps
a rank's share of a bucket contiguous, so that it is sent without being sorted:

- "elements": each bucket, as one flat vector, is cut into N equal slices (ZeRO stage 1,
  Rajbhandari et al., SC 2020). For optimizers that treat each element by itself. With
  state in blocks the cuts are between blocks, counted from the start of each entry.
- "tensors": each tensor has one owner. For the others, such as Muon and Adafactor.
- "replicated" cuts nothing: every rank has all state. The slices of "elements" only
  define which rank adds which part in the all-reduce.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Literal, NamedTuple

from .buckets import make_buckets
from .entries import ITEM_SIZES, Entry, fingerprint, in_order
from .paths import KeyPath

Strategy = Literal["replicated", "elements", "tensors"]
Groups = Sequence[tuple[Entry, ...]]  # the entries of each bucket
Costs = dict[KeyPath, float]


class Piece(NamedTuple):
    """A rank's part of one entry: elements [start, stop) of it, flattened.

    `offset` is its first element in the rank's chunk of the bucket.
    """

    entry: Entry
    start: int
    stop: int
    offset: int

    def shape(self, strategy: Strategy) -> tuple[int, ...]:
        """Return the shape: 1-D for a slice, the entry's own for a whole tensor."""
        if strategy == "elements":
            return (self.stop - self.start,)
        return self.entry.shape


@dataclass(frozen=True)
class Bucket:
    """Entries of one dtype that are sent as one flat vector, end to end."""

    entries: tuple[Entry, ...]
    ranks: int
    owners: tuple[int, ...] | None = None  # of each entry, ascending; None: slices
    block: int = 1  # slices are cut where an entry has a multiple of so many elements

    @property
    def dtype(self) -> str:
        return self.entries[0].dtype

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """First element of each entry, then the size of the bucket."""
        return tuple(accumulate((e.size for e in self.entries), initial=0))

    @cached_property
    def size(self) -> int:
        return self.offsets[-1]

    @cached_property
    def nbytes(self) -> int:
        return self.size * ITEM_SIZES[self.dtype]

    @property
    def names(self) -> str:
        """Its parameters for a report, such as "head.bias and 3 more"."""
        more = len(self.entries) - 1
        return f"{self.entries[0].path}" + f" and {more} more" * (more > 0)

    @cached_property
    def chunk(self) -> int:
        """Elements of the largest share."""
        if self.owners is None and self.block == 1:
            return self._equal
        return max(stop - start for start, stop in self.spans)

    @cached_property
    def _equal(self) -> int:
        """Elements of equal shares, but for the last ones."""
        return -(-self.size // self.ranks)

    @cached_property
    def is_even(self) -> bool:
        """Whether no share but the last ones is shorter than the largest."""
        return all(
            start == min(r * self.chunk, self.size)
            for r, (start, _) in enumerate(self.spans)
        )

    @cached_property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """Each rank's share of the flat vector: elements [start, stop)."""
        return tuple(map(self.span, range(self.ranks)))

    def span(self, rank: int) -> tuple[int, int]:
        """Return the rank's share of the flat vector: elements [start, stop)."""
        if self.owners is None:
            chunk = self._equal
            cuts = min(rank * chunk, self.size), min((rank + 1) * chunk, self.size)
            return cuts if self.block == 1 else (self._cut(cuts[0]), self._cut(cuts[1]))
        first, last = (
            bisect_right(self.owners, rank - 1),
            bisect_right(self.owners, rank),
        )
        return self.offsets[first], self.offsets[last]

    def _cut(self, cut: int) -> int:
        """Return the cut between blocks, or entries, that is nearest to another one."""
        if cut == self.size:
            return cut
        index = bisect_right(self.offsets, cut) - 1
        start, stop = self.offsets[index], self.offsets[index + 1]
        return min(start + round_to(cut - start, self.block), stop)

    def pieces(self, rank: int) -> Iterator[Piece]:
        """Yield the rank's part of each entry, in the order of the flat vector.

        An entry without elements belongs to one rank, which has its state.
        """
        start, stop = self.span(rank)
        for index, entry in enumerate(self.entries):
            begin = self.offsets[index]
            if entry.size == 0:
                owner = self.owners[index] if self.owners is not None else 0
                if owner == rank:
                    yield Piece(entry, 0, 0, min(max(begin, start), stop) - start)
                continue
            low, high = max(start, begin), min(stop, begin + entry.size)
            if low < high:
                yield Piece(entry, low - begin, high - begin, low - start)


@dataclass(frozen=True)
class Plan:
    """The buckets, and the strategy that shares them out over the ranks."""

    strategy: Strategy
    ranks: int
    entries: tuple[Entry, ...]
    buckets: tuple[Bucket, ...]

    @property
    def sharded(self) -> bool:
        return self.strategy != "replicated"

    def shard(self, rank: int) -> dict[KeyPath, tuple[int, int]]:
        """Return `{path: (start, stop)}`: the elements whose state a rank has."""
        if not self.sharded:
            return {entry.path: (0, entry.size) for entry in self.entries}
        return {
            piece.entry.path: (piece.start, piece.stop)
            for bucket in self.buckets
            for piece in bucket.pieces(rank)
        }

    def pieces(self, rank: int) -> list[tuple[Piece, ...]]:
        """Return the pieces of each bucket that a rank's optimizer steps."""
        if self.sharded:
            return [tuple(bucket.pieces(rank)) for bucket in self.buckets]
        return [
            tuple(
                Piece(entry, 0, entry.size, offset)
                for entry, offset in zip(b.entries, b.offsets, strict=False)
            )
            for b in self.buckets
        ]

    @cached_property
    def by_path(self) -> dict[KeyPath, Entry]:
        return {entry.path: entry for entry in self.entries}

    @property
    def lines(self) -> list[str]:
        """The plan as text, to be compared across ranks."""
        layout = f"{self.strategy}, ranks: {self.ranks}, buckets: {len(self.buckets)}"
        return [layout, *map(str, self.entries)]

    @cached_property
    def fingerprint(self) -> int:
        return fingerprint(
            [
                self.strategy,
                self.ranks,
                [
                    [[e.path.text, e.shape, e.dtype] for e in b.entries]
                    + ([b.owners] if b.block == 1 else [b.block])
                    for b in self.buckets
                ],
            ]
        )


def balance(costs: Sequence[float], ranks: int) -> list[int]:
    """Return an owner for each cost, so that the ranks' sums are nearly equal.

    Longest processing time first (Graham, 1969): at most 4/3 of the best possible.
    """
    load = [(0.0, rank) for rank in range(ranks)]
    owners = [0] * len(costs)
    for index in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        cost, rank = heapq.heappop(load)
        owners[index] = rank
        heapq.heappush(load, (cost + costs[index], rank))
    return owners


def round_to(number: int, multiple: int) -> int:
    """Return the multiple that is nearest to a number, the larger of two."""
    return (number + multiple // 2) // multiple * multiple


def even_slices(groups: Groups, ranks: int, costs: Costs, block: int) -> list[Bucket]:
    """Cut each bucket, as one flat vector, into equal slices."""
    return [Bucket(entries, ranks) for entries in groups]


def block_slices(groups: Groups, ranks: int, costs: Costs, block: int) -> list[Bucket]:
    """Cut each bucket, as one flat vector, into slices of whole blocks."""
    return [Bucket(entries, ranks, block=block) for entries in groups]


def whole_tensors(groups: Groups, ranks: int, costs: Costs, block: int) -> list[Bucket]:
    """Give each tensor to one rank, so that the ranks' costs even out."""
    entries = in_order(entry for group in groups for entry in group)
    owners = balance([costs.get(e.path, float(e.nbytes)) for e in entries], ranks)
    owner_of = {e.path: owner for e, owner in zip(entries, owners, strict=True)}
    made = []
    for group in groups:
        by_owner = sorted(group, key=lambda entry: owner_of[entry.path])
        owned = tuple(owner_of[e.path] for e in by_owner)
        made.append(Bucket(tuple(by_owner), ranks, owned))
    return made


# A new strategy adds a function here, and its name to `Strategy`.
STRATEGIES: dict[Strategy, Callable[[Groups, int, Costs, int], list[Bucket]]] = {
    "replicated": even_slices,
    "elements": block_slices,
    "tensors": whole_tensors,
}


def make_plan(
    entries: Sequence[Entry],
    ranks: int,
    *,
    strategy: Strategy,
    bucket_size: int,
    least_bucket: int = 0,
    costs: Costs | None = None,
    order: Sequence[KeyPath] = (),
    block: int = 1,
) -> Plan:
    """Plan the buckets and their owners.

    Args:
        entries: the parameters, in any order.
        ranks: size of the world.
        strategy: how the state is cut.
        bucket_size: bytes of gradients that are sent together.
        least_bucket: bytes that the transport wants to send together.
        costs: for "tensors", the cost of each path's update; its bytes by default.
        order: the paths as the model uses them; see `make_buckets`.
        block: for "elements", elements of an entry that stay together on a rank,
            counted from its first one. Only its last ones may be fewer.

    Raises:
        ValueError: on an unknown strategy, a duplicate path, or no rank.
    """
    if ranks < 1:
        raise ValueError(f"a plan for {ranks} ranks; there must be at least one")
    if strategy not in STRATEGIES:
        names = ", ".join(f'"{name}"' for name in STRATEGIES)
        raise ValueError(f"unknown shard strategy {strategy!r}; it is one of {names}")
    ordered = in_order(entries)
    groups = [
        tuple(ordered[index] for index in group)
        for group in make_buckets(ordered, bucket_size, order, least_size=least_bucket)
    ]
    buckets = STRATEGIES[strategy](groups, ranks, costs or {}, block)
    return Plan(strategy, ranks, ordered, tuple(buckets))
