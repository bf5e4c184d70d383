"""Buckets on the native transport while `mx.compile` traces a step."""

from __future__ import annotations

import mlx.core as mx

from ..arrays.concat import join
from ..arrays.types import Dtype, Flat, Pieces
from ..layout.sharding import Plan
from .native import NativeTransport
from .reduction import Weights, weigh
from .share_sums import ShareSums
from .wire import Reduction, Wire


class TracedWire(Wire):
    """A wire whose weights are known on their own rank alone, and not before the step.

    Their sum is one more number of the first bucket, where that is copied together
    anyway and all-reduced in float32: one collective less. Whole numbers up to 2^24 are
    exact there. Otherwise it is a collective by itself, behind the first gradients.
    """

    def __init__(self, plan: Plan, comm: NativeTransport, *, wire_dtype: Dtype = None):
        super().__init__(plan, comm, wire_dtype=wire_dtype)
        self._native, self._sent_as = comm, wire_dtype

    def reduce(
        self, gradients: Flat, weights: Weights, earlier: ShareSums | None = None
    ) -> Reduction:
        """Start the weighted mean over the ranks: see `Wire.reduce`."""
        if not self.has_peers:
            total = weights.local if weights.every is None else weights.total
            weights = weights._replace(total=total)
        elif weights.every is None:
            entries = self.plan.buckets[0].entries
            first = [gradients[entry.path] for entry in entries]
            if self._carries_weight(first):
                return self._reduce_with_weight(gradients, weights)
            weights = weights.summed(self.comm.sum_scalar, behind=first)
        return Reduction(self, gradients, weights, earlier)

    def _carries_weight(self, first: Pieces) -> bool:
        bucket, sharded = self.plan.buckets[0], self.plan.sharded
        dtype = first[0].dtype if self._sent_as is None else self._sent_as
        is_float32 = dtype == mx.float32 and bucket.dtype != "float64"
        is_whole = not sharded or self._native.reduces_whole(bucket)
        return len(first) > 1 and is_float32 and is_whole

    def _reduce_with_weight(self, gradients: Flat, weights: Weights) -> Reduction:
        bucket, sharded = self.plan.buckets[0], self.plan.sharded
        parts = [gradients.pop(entry.path) for entry in bucket.entries]
        parts = [*(part.astype(mx.float32) for part in parts), mx.ones(1)]
        packed = weigh(join(parts), weights)
        total, mean = self._native.start_with_weight(packed, bucket, sharded=sharded)
        weights = weights._replace(total=total)
        return Reduction(self, gradients, weights, None, mean)
