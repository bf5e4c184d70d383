"""Buckets on a transport: gradients to means, and updated pieces to parameters.

`reduce` takes every rank's gradients and returns the mean of what this rank steps with,
a chunk for each bucket. What the optimizer makes of a chunk goes into `gather`, and
comes out whole on every rank.
"""

from __future__ import annotations

from ..arrays import device
from ..arrays.concat import Chunk, Split, join
from ..arrays.dtypes import dtype_name, dtype_of
from ..arrays.types import Array, Dtype, Flat, Pieces
from ..layout.entries import ITEM_SIZES
from ..layout.sharding import Bucket, Plan
from .collectives import Collectives, Pending, Traffic
from .deferred_gather import DeferredGather, DeferredGathers
from .gather import Gather
from .reduction import Weights, weigh
from .share_sums import ShareSums
from .window import Window


class Wire:
    """A plan on a transport.

    Args:
        plan: which bucket holds what.
        comm: the transport.
        wire_dtype: gradients travel as this dtype; as they are where it is None.
        mean_dtype: means are rounded to this dtype, over a transport that adds by
            itself; to the parameters' own where it is None.
        deferred: gathers parameters behind the next forward pass; None gathers them at
            once.

    Attributes:
        order: in which buckets are stepped and gathered.
    """

    def __init__(
        self,
        plan: Plan,
        comm: Collectives,
        *,
        wire_dtype: Dtype = None,
        mean_dtype: Dtype = None,
        deferred: DeferredGathers | None = None,
    ):
        self.plan = plan
        self._deferred = deferred
        self.order = range(len(plan.buckets)) if deferred is None else deferred.order
        self.comm = comm
        self.pieces = plan.pieces(comm.rank)
        self._wire_dtype = wire_dtype
        self._mean_dtype = mean_dtype
        self._contents = [f"bucket {i}: {b.names}" for i, b in enumerate(plan.buckets)]
        self._entries = [
            Split(b.offsets, [e.shape for e in b.entries]) for b in plan.buckets
        ]
        self._pieces = [
            Split(
                [0, *(p.offset + p.stop - p.start for p in bucket)],
                [p.shape(plan.strategy) for p in bucket],
            )
            for bucket in self.pieces
        ]

    @property
    def has_peers(self) -> bool:
        """Whether there is another rank to exchange with."""
        return self.comm.size > 1

    def reduce(
        self, gradients: Flat, weights: Weights, earlier: ShareSums | None = None
    ) -> Reduction:
        """Start the weighted mean over the ranks, of what this rank steps with.

        Args:
            gradients: all of them, with the plan's paths and shapes, maybe lazy. Each
                is dropped from the dict when its bucket is sent.
            weights: each rank's.
            earlier: sums of micro-batches, of which these are the last one: the mean
                is that over all of them.

        Returns:
            This rank's span of each bucket, or the whole bucket for replicated state.
            `expected` gives the bytes on the wire.
        """
        return Reduction(self, gradients, weights, earlier)

    @property
    def is_deferred(self) -> bool:
        """Whether gathered parameters are lazy, and arrive later."""
        return self._deferred is not None

    def gather(self) -> Gather | DeferredGather:
        """Start the way back: the updated pieces of each bucket, whole on all ranks.

        Buckets are pushed in `order`.
        """
        return Gather(self) if self._deferred is None else self._deferred.start()

    def expected(self, dtype: str | None = None, *, pairwise: bool = False) -> Traffic:
        """Traffic of one step of this rank, from the plan alone; `traffic` counts it.

        Args:
            dtype: of the gradients, where it is not the parameters'.
            pairwise: whether ranks are added in pairs.
        """
        traffic, comm = Traffic(), self.comm
        if self._deferred is not None:
            traffic = self._deferred.expected()
        for bucket in self.plan.buckets if self.has_peers else ():
            item = ITEM_SIZES[
                _unless_wide(self._wire_dtype, bucket) or dtype or bucket.dtype
            ]
            if self.plan.sharded:
                nbytes = comm.reduce_scatter_bytes(bucket, item, pairwise=pairwise)
                traffic.add(nbytes)
                if self._deferred is None:
                    stepped_item = ITEM_SIZES[bucket.dtype]
                    traffic.add(comm.all_gather_bytes_sent(bucket, stepped_item))
            else:
                mean = ITEM_SIZES[
                    _unless_wide(self._mean_dtype, bucket) or bucket.dtype
                ]
                nbytes = comm.all_reduce_bytes(bucket, item, mean, pairwise=pairwise)
                traffic.add(nbytes, 2 if comm.adds_in_rank_order else 1)
        return traffic

    # -- for Reduction and Gather

    def local_chunk(self, index: int, gradients: Flat) -> Chunk:
        """This rank's pieces of a bucket, where there is no other rank."""
        # As they are: a reshape copies the transposed gradient of a Linear layer, and
        # until a norm is known all of them wait here.
        pieces = [gradients.pop(p.entry.path) for p in self.pieces[index]]
        return Chunk(self._pieces[index], pieces=pieces)

    def stepped_chunk(self, index: int, pieces: Pieces) -> Chunk:
        """This rank's updated pieces of a bucket, to be gathered."""
        return Chunk(self._pieces[index], pieces=pieces)

    def reduced_chunk(self, index: int, flat: Array) -> Chunk:
        return Chunk(self._pieces[index], flat=flat)

    def packed_gradients(self, index: int, gradients: Flat, weights: Weights) -> Pieces:
        """Take a bucket's gradients, as its collective sends them. Lazy."""
        entries = self.plan.buckets[index].entries
        parts = [gradients.pop(entry.path) for entry in entries]
        name = _unless_wide(self._wire_dtype, self.plan.buckets[index])
        if name is not None and parts[0].dtype != (dtype := dtype_of(name)):
            parts = [part.astype(dtype) for part in parts]
        if self.comm.adds_in_rank_order:  # and weighs what it adds
            return device.packed(parts)
        return [weigh(join(parts), weights)]

    def start_reduce(self, index: int, packed: Pieces, weights: Weights) -> Pending:
        bucket = self.plan.buckets[index]
        with self.comm.recorder.carrying(self._contents[index]):
            mean = dtype_of(_unless_wide(self._mean_dtype, bucket) or bucket.dtype)
            if self.plan.sharded:
                return self.comm.start_reduce_scatter(packed, bucket, weights, mean)
            return self.comm.start_all_reduce(packed, bucket, weights, mean)

    def queue_stepped(self, index: int, chunk: Chunk) -> Chunk:
        """Queue updated pieces on an accelerator, and return them as they are sent."""
        if device.on_cpu() or not (self.plan.sharded and self.has_peers):
            return chunk
        packed = device.packed(chunk.arrays)
        device.start_evaluation(packed)
        return Chunk(self._pieces[index], flat=packed[0]) if packed else chunk

    def start_gather(self, index: int, chunk: Chunk, into: Array) -> Pending:
        bucket = self.plan.buckets[index]
        with self.comm.recorder.carrying(self._contents[index]):
            return self.comm.start_all_gather(chunk.arrays, bucket, into)

    def entries(self, index: int, flat: Array) -> Pieces:
        """Cut a whole bucket into its entries."""
        return self._entries[index](flat)

    def entries_of_chunk(self, index: int, chunk: Chunk) -> Pieces:
        """The entries of a bucket whose pieces are all on this rank."""
        if self.plan.strategy != "elements":
            return chunk.pieces()
        entries = zip(chunk.pieces(), self.plan.buckets[index].entries, strict=True)
        return [piece.reshape(entry.shape) for piece, entry in entries]


class Reduction:
    """The mean gradients of this rank, in the order of the buckets.

    `take` returns the next bucket's chunk, starts the collectives of the buckets that
    follow, and keeps nothing, so that the chunk's memory can be reused once the caller
    drops it. `collect` waits for all buckets first.

    Attributes:
        squares: after `collect`, the sum of squares of this rank's spans; inf where it
            is not finite, None where the transport did not measure it.
    """

    def __init__(
        self,
        wire: Wire,
        gradients: Flat,
        weights: Weights,
        earlier: ShareSums | None = None,
        first: Pending | None = None,  # of the first bucket, if it was started
    ):
        self._wire, self._earlier = wire, earlier
        self._gradients = gradients
        self.weights = weights
        self._window = Window(wire.plan.buckets, overlaps=wire.comm.overlaps)
        self._queued: dict[int, Pieces] = {}  # packed, and not started
        self._started = 0  # buckets whose collective was started
        self._finished = 0
        self._collected: dict[int, Chunk] = {}
        self._squares: list[float] = []
        if first is not None:
            self._window.push(0, first)
            self._started = 1
        if not wire.has_peers:
            self.collect()

    def take(self, index: int) -> Chunk:
        """Return the mean of a bucket. Waits for those before it, and keeps them."""
        self._collect_up_to(index)
        return self._collected.pop(index)

    def collect(self) -> None:
        """Wait for all buckets.

        After an error it goes on with the bucket that is the next one.
        """
        self._collect_up_to(len(self._wire.plan.buckets) - 1)

    @property
    def squares(self) -> float | None:
        return sum(self._squares) if self._squares else None

    def replace_gradients(self, gradients: Flat) -> None:
        """Use other gradients for the buckets that are not started yet."""
        self._gradients = gradients
        self._queued.clear()

    def chunks(self) -> list[Chunk]:
        """Wait for all buckets, and return them."""
        self.collect()
        return list(self._collected.values())

    def arrays(self) -> Pieces:
        """Wait for all buckets, and return their arrays as they lie in memory."""
        return [array for chunk in self.chunks() for array in chunk.arrays]

    def _collect_up_to(self, last: int) -> None:
        while self._finished <= last:
            mean = self._finish()
            self._collected[self._finished - 1] = mean

    def _finish(self) -> Chunk:
        """Finish the next bucket, and note the squares of its mean."""
        index = self._finished
        if self._wire.has_peers:
            self._start()
            _, pending, flat = self._window.finish()
            if pending.squares is not None and self._earlier is None:
                self._squares.append(pending.squares)
            chunk = self._wire.reduced_chunk(index, flat)
        else:
            chunk = self._wire.local_chunk(index, self._gradients)
        self._finished += 1
        return chunk if self._earlier is None else self._earlier.mean(index, chunk)

    def _start(self) -> None:
        """Start collectives until the window is full."""
        while self._started < len(self._wire.plan.buckets) and not self._window.is_full:
            index = self._started
            self._queue_up_to(index + device.buckets_ahead())
            packed, weights = self._queued[index], self.weights
            self._window.push(index, self._wire.start_reduce(index, packed, weights))
            del self._queued[index]
            self._started += 1

    def _queue_up_to(self, last: int) -> None:
        """Queue gradients bucket by bucket: to start a bucket is to wait for it."""
        buckets = len(self._wire.plan.buckets)
        for index in range(self._started, min(last + 1, buckets)):
            if index not in self._queued:
                packed = self._wire.packed_gradients(
                    index, self._gradients, self.weights
                )
                if device.buckets_ahead():  # else MLX may lose them: device.recover
                    device.start_evaluation(packed)
                self._queued[index] = packed


def _unless_wide(dtype: Dtype, bucket: Bucket) -> str | None:
    """The name of a dtype; None where there is none, or the bucket's is wider."""
    return None if dtype is None or bucket.dtype == "float64" else dtype_name(dtype)
