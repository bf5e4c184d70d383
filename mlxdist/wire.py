"""Trees to buckets, over the wire, and back. Only this file concatenates and splits.

`reduce` takes every rank's gradients and gives the mean of what this rank owns, as one
flat chunk for each bucket; `own` cuts chunks into the pieces that the optimizer steps
with. What it makes of them goes, bucket by bucket, through `gather`, and is whole on
every rank again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import mlx.core as mx

from .collectives import Array, Collectives, Pending, Traffic, Weights
from .layout import ITEM_SIZES
from .native import all_sum_bytes
from .sharding import Bucket, Plan
from .trees import Flat

Pieces = list[Array]

# Bytes of buckets whose exchange has been started and not finished: enough to keep the
# wire busy while one is packed and one is unpacked, few enough to bound the memory.
IN_FLIGHT = 8 * 2**20


class Means(NamedTuple):
    """The mean gradients that this rank has, in the order of the buckets.

    `chunks` are flat; where nothing travels, on one rank, there are lists of the
    gradients themselves. `squares` is the sum of the squares of all chunks, inf where
    it is not finite, None where it was not measured.
    """

    chunks: deque[Array | Pieces]
    squares: float | None

    def arrays(self) -> Pieces:
        """All of them, in no special form."""
        parts = [part if isinstance(part, list) else [part] for part in self.chunks]
        return [array for part in parts for array in part]


class Wire:
    """A plan on a transport.

    Args:
        plan: which bucket holds what.
        comm: the transport.
        wire_dtype: what gradients travel as; their own dtype where it is None. "native"
            adds in it too, and "host" in float32.
    """

    def __init__(self, plan: Plan, comm: Collectives, *, wire_dtype: Any = None):
        self.plan = plan
        self.comm = comm
        self.wire_dtype = wire_dtype
        self.pieces = plan.pieces(comm.rank)
        self._all_sums = comm.name == "native" and not plan.sharded
        self._packs = [_Join(self._pack_dtype(bucket)) for bucket in plan.buckets]
        self._repacks = [_Join(bucket.dtype) for bucket in plan.buckets]
        self._wholes = [
            _Split(list(pairwise(b.offsets)), [e.shape for e in b.entries])
            for b in plan.buckets
        ]
        self._splits = [
            _Split(
                [(p.offset, p.offset + p.stop - p.start) for p in pieces],
                [p.shape(plan.strategy) for p in pieces],
            )
            for pieces in self.pieces
        ]

    def reduce(
        self, gradients: Flat, weights: Weights, *, traced: bool = False
    ) -> Means:
        """The weighted mean over the ranks, of what this rank owns.

        Args:
            gradients: all of them, with the plan's paths and shapes, maybe lazy.
            weights: each rank's.
            traced: whether `mx.compile` is tracing.

        Returns:
            This rank's span of each bucket, or the whole bucket where "native" adds up
            gradients for replicated state. Bytes on the wire: see
            `Collectives.start_sum_scatter` and `start_all_sum`.
        """
        if self.comm.size == 1:
            return Means(deque(self._parts(gradients)), None)
        if weights.every is None:
            weights = weights._replace(total=self.comm.sum_scalar(weights.own))
        comm = self.comm
        start = comm.start_all_sum if self._all_sums else comm.start_sum_scatter

        def launch() -> Iterator[Pending]:
            for bucket, pack in zip(self.plan.buckets, self._packs, strict=True):
                parts = [gradients[entry.path] for entry in bucket.entries]
                with mx.stream(comm.stream or mx.default_device()):
                    flat = pack(parts, traced=traced)
                yield start(flat, bucket, weights)

        means, squares = Means(deque(), None), []
        for pending in self._pipeline(launch()):
            means.chunks.append(pending.finish())
            squares.append(pending.squares)
        measured = [square for square in squares if square is not None]
        return means._replace(squares=sum(measured)) if measured else means

    def own(self, means: Means, *, traced: bool) -> Iterator[tuple[int, Pieces]]:
        """The pieces that this rank has to step with; uses the means up.

        Over "host" the mean gradients for replicated state are gathered here, in the
        gradients' dtype. Sends what a rank owns to each other rank.
        """
        if self.comm.size == 1:
            yield from enumerate(_emptied(means.chunks))
            return
        spread = not self.plan.sharded and not self._all_sums
        chunks = self._spread(means) if spread else _emptied(means.chunks)
        for index, chunk in enumerate(chunks):
            yield index, self._splits[index](chunk, traced=traced)

    def gather(
        self, stepped: Iterable[tuple[int, Pieces]], *, traced: bool
    ) -> Iterator[tuple[Bucket, Pieces]]:
        """Each bucket's entries, whole, from every rank's pieces.

        Sends what a rank owns to each other rank.
        """
        buckets = self.plan.buckets
        if not self.plan.sharded or self.comm.size == 1:
            for index, pieces in stepped:
                entries = zip(pieces, buckets[index].entries, strict=True)
                yield buckets[index], [piece.reshape(e.shape) for piece, e in entries]
            return

        def launch() -> Iterator[Pending]:
            for index, pieces in stepped:
                flat = self._repacks[index](pieces, traced=traced)
                yield self.comm.start_all_gather(flat, buckets[index])

        for index, pending in enumerate(self._pipeline(launch())):
            flat = pending.finish()
            yield buckets[index], self._wholes[index](flat, traced=traced)

    def expected(self) -> Traffic:
        """What a step of this rank sends, from the plan alone; `traffic` counts it."""
        traffic = Traffic()
        ranks = self.plan.ranks
        for bucket in self.plan.buckets if ranks > 1 else ():
            item, wire_item = ITEM_SIZES[bucket.dtype], self._pack_size(bucket)
            start, stop = bucket.span(self.comm.rank)
            own, all_sum = stop - start, all_sum_bytes(bucket.size * wire_item, ranks)
            if self.comm.name == "host":
                traffic.add((bucket.size - own) * wire_item)
                traffic.add((ranks - 1) * own * item)
                continue
            traffic.add(all_sum)
            if self.plan.strategy == "elements":
                traffic.add((ranks - 1) * bucket.chunk * item)
            elif self.plan.strategy == "tensors":
                traffic.add(all_sum_bytes(bucket.size * item, ranks))
        return traffic

    def _parts(self, gradients: Flat) -> Iterator[Pieces]:
        for pieces in self.pieces:
            yield [
                gradients[p.entry.path].reshape(p.shape(self.plan.strategy))
                for p in pieces
            ]

    def _spread(self, means: Means) -> Iterator[Array]:
        def launch() -> Iterator[Pending]:
            for index, bucket in enumerate(self.plan.buckets):
                mean: Any = means.chunks.popleft()
                narrow = mean.astype(getattr(mx, bucket.dtype))
                yield self.comm.start_all_gather(narrow, self.plan.buckets[index])

        for pending in self._pipeline(launch()):
            yield pending.finish()

    def _pipeline(self, started: Iterator[Pending]) -> Iterator[Pending]:
        """Those that have been started, oldest first, with others under way."""
        under_way: deque[Pending] = deque()
        oldest, nbytes = 0, 0
        buckets = self.plan.buckets
        for newest, pending in enumerate(started):
            under_way.append(pending)
            nbytes += buckets[newest].nbytes
            while nbytes > IN_FLIGHT and len(under_way) > 1:
                nbytes -= buckets[oldest].nbytes
                oldest += 1
                yield under_way.popleft()
        while under_way:
            yield under_way.popleft()

    def _pack_dtype(self, bucket: Bucket) -> str:
        # What is wider than float32 stays so.
        if self.wire_dtype is None or bucket.dtype == "float64":
            return bucket.dtype
        return str(self.wire_dtype).rpartition(".")[2]

    def _pack_size(self, bucket: Bucket) -> int:
        return ITEM_SIZES[self._pack_dtype(bucket)]


def _emptied(chunks: deque[Any]) -> Iterator[Any]:
    while chunks:
        yield chunks.popleft()


class _Join:
    """Arrays -> one flat vector of a dtype.

    Compiled, as `_Split` is, not for the arithmetic, but because thousands of small
    tensors would cost a microsecond of Python each.
    """

    def __init__(self, dtype: str):
        self._dtype = getattr(mx, dtype)
        self._compiled: Callable[..., Array] = mx.compile(self._join)

    def __call__(self, parts: Pieces, *, traced: bool) -> Array:
        plain = traced or len(parts) < 2
        return self._join(parts) if plain else self._compiled(parts)

    def _join(self, parts: Pieces) -> Array:
        if not parts:
            return mx.zeros(0, self._dtype)
        flat = [part.reshape(-1) for part in parts]
        return (flat[0] if len(flat) == 1 else mx.concatenate(flat)).astype(self._dtype)


class _Split:
    """One flat vector -> views of it, from and to given places, in given shapes."""

    def __init__(
        self, bounds: Sequence[tuple[int, int]], shapes: Sequence[tuple[int, ...]]
    ):
        self._parts = list(zip(bounds, shapes, strict=True))
        self._compiled: Callable[..., Pieces] = mx.compile(self._split)

    def __call__(self, flat: Array, *, traced: bool) -> Pieces:
        plain = traced or len(self._parts) < 2
        return self._split(flat) if plain else self._compiled(flat)

    def _split(self, flat: Array) -> Pieces:
        return [flat[a:b].reshape(shape) for (a, b), shape in self._parts]
