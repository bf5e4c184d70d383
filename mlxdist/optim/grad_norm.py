"""The global norm of mean gradients, clipping, and gradients that are not finite."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import mlx.core as mx
import numpy as np

from ..arrays import device
from ..arrays.numpy_view import raw, sum_of_squares
from ..arrays.pairwise_sum import Node, node_sums_of_squares, nodes_of, root_sum
from ..arrays.types import Array, Flat, Raw
from ..comm.agreement import OnAllRanks, difference, float_of, word_of
from ..comm.collectives import Collectives
from ..comm.reduction import Weights
from ..comm.wire import Reduction, Wire
from ..layout.paths import KeyPath
from ..layout.sharding import Bucket

# Average bytes of a tensor from which on a look at every gradient beforehand costs less
# than keeping all means until the last one is known.
STREAM_FROM = 256 * 1024
_FAR_FROM_OVERFLOW = 1e30


class NonFiniteError(FloatingPointError, OnAllRanks):
    """Gradients are nan or inf. Raised on all ranks, before anything has changed."""


class Norm(NamedTuple):
    """The global norm of the mean gradients.

    Attributes:
        value: a float32 scalar, the same on all ranks; None where it was not measured.
        is_finite: whether all mean gradients are; assumed while `mx.compile` traces.
        is_traced: whether `value` exists inside the compiled function alone.
    """

    value: Array | None
    is_finite: bool = True
    is_traced: bool = False


UNMEASURED = Norm(None)


class NormPolicy(Protocol):
    """How a pipeline measures the global norm."""

    def measure(self, means: Reduction, gradients: Flat, weights: Weights) -> Norm:
        """Return the norm of `means`.

        Args:
            gradients: those that they are of, with `weights`; none where each is
                dropped when it is sent.
        """


class Unmeasured:
    """No norm: a world of one without options that need it, as MLX itself."""

    def measure(self, means: Reduction, gradients: Flat, weights: Weights) -> Norm:
        return UNMEASURED


class MeasuredNorm(NamedTuple):
    """Waits for all means, then measures."""

    wire: Wire

    def measure(self, means: Reduction, gradients: Flat, weights: Weights) -> Norm:
        means.collect()
        norm = self._norm(means)
        if not math.isfinite(float(norm)):
            summed = self.wire.plan.sharded
            norm = _scaled_norm(means.arrays(), self.wire.comm, summed=summed)
        return Norm(norm, math.isfinite(float(norm)))

    def _norm(self, means: Reduction) -> Array:
        squares = means.squares
        local = _squared_norm(means.arrays()) if squares is None else mx.array(squares)
        mx.eval(local)  # raises errors of the means: no rank is in the collective yet
        if self.wire.plan.sharded or squares is not None:
            local = self.wire.comm.sum_scalar(local)
        # On the host: an accelerator would have nothing else to do meanwhile.
        return mx.array(np.sqrt(np.float32(float(local))))


class TracedNorm(NamedTuple):
    """Measures lazily, for `mx.compile`: the result has no value yet."""

    wire: Wire

    def measure(self, means: Reduction, gradients: Flat, weights: Weights) -> Norm:
        means.collect()
        squares = _lazy_squares(means.arrays())
        if self.wire.plan.sharded:
            squares = self.wire.comm.sum_scalar(squares)
        return Norm(mx.sqrt(squares), is_traced=True)


class CheckedBeforehand(NamedTuple):
    """Measures only where it can't be shown cheaply that the means will be finite.

    A bucket can then be stepped as soon as it arrives. That pays where ranks share the
    cores of one host, compute and communicate in turn, and so have their gradients by
    now. Sends 8 bytes a rank.
    """

    wire: Wire
    otherwise: MeasuredNorm

    @classmethod
    def pays(cls, wire: Wire) -> bool:
        entries = wire.plan.entries
        large = sum(entry.nbytes for entry in entries) >= STREAM_FROM * len(entries)
        takes_turns = wire.comm.adds_in_rank_order and not wire.comm.overlaps
        is_float32 = all(entry.dtype == "float32" for entry in entries)
        return wire.has_peers and takes_turns and large and is_float32

    def measure(self, means: Reduction, gradients: Flat, weights: Weights) -> Norm:
        if not gradients:
            return self.otherwise.measure(means, gradients, weights)
        squares = 0.0
        if weights.local:
            arrays = gradients.values()
            squares = sum(sum_of_squares(raw(a, np.float32)) for a in arrays)
        # No weight is above 1e15, so that weighted sums of such gradients are finite.
        bound = self.wire.comm.sum_scalar(mx.array(squares))
        if float(bound) < _FAR_FROM_OVERFLOW:
            return UNMEASURED
        return self.otherwise.measure(means, gradients, weights)


class PairwiseNorm(NamedTuple):
    """Measures with the same bits on any number of ranks, however state is cut.

    Each tensor's squares are added in pairs, in float64, where squares of float32 are
    exact and can't overflow; then the tensors' sums, sorted by path. One collective of
    8 bytes for each node of the rank that holds most of them.
    """

    wire: Wire

    def measure(self, means: Reduction, gradients: Flat, weights: Weights) -> Norm:
        means.collect()
        wire = self.wire
        is_whole = not wire.has_peers or not wire.plan.sharded
        ranks = range(1) if is_whole else range(wire.comm.size)
        nodes = [_nodes(wire.plan.buckets, rank, is_whole) for rank in ranks]
        local = self._local_sums(means, 0 if is_whole else wire.comm.rank, is_whole)
        rows = (
            [local] if is_whole else _gathered(local, max(map(len, nodes)), wire.comm)
        )
        sums: dict[KeyPath, dict[Node, float]] = {e.path: {} for e in wire.plan.entries}
        for row, values in zip(nodes, rows, strict=True):
            for (path, node), value in zip(row, values, strict=False):
                sums[path][node] = value
        roots = [root_sum(sums[entry.path], entry.size) for entry in wire.plan.entries]
        norm = np.float32(math.sqrt(sum(roots)))
        return Norm(mx.array(norm), bool(np.isfinite(norm)))

    def _local_sums(self, means: Reduction, rank: int, is_whole: bool) -> list[float]:
        local: list[float] = []
        for bucket, chunk in zip(self.wire.plan.buckets, means.chunks(), strict=True):
            spans = _spans(bucket, rank, is_whole)
            for array, (_, start, _, size) in zip(chunk.pieces(), spans, strict=True):
                sums = node_sums_of_squares(_numbers(array), start, size)
                local += [sums[node] for node in sorted(sums)]
        return local


def clip_scale(norm: Array, max_norm: float) -> Array:
    """Return the factor that brings a global norm down to at most `max_norm`.

    As `mlx.optimizers.clip_grad_norm` computes it.
    """
    return mx.minimum(max_norm / (norm + 1e-6), 1.0)


def _squared_norm(arrays: Sequence[Array]) -> Array:
    """The sum of squares of all elements, a float32 scalar; 0 for no arrays.

    Float32 arrays on a CPU are summed in the cache, without temporaries.
    """
    on_cpu = device.on_cpu()
    in_cache = [a for a in arrays if on_cpu and a.dtype == mx.float32]
    others = [a for a in arrays if not (on_cpu and a.dtype == mx.float32)]
    return _lazy_squares(others) + sum(
        sum_of_squares(raw(array, np.float32)) for array in in_cache
    )


def _lazy_squares(arrays: Sequence[Array]) -> Array:
    """The sum of squares, lazy. 16-bit numbers are squared in float32."""
    total = mx.array(0.0, mx.float32)
    for array in arrays:
        if array.size:
            total = total + array.astype(mx.float32).square().sum()
    return total


def _scaled_norm(arrays: Sequence[Array], comm: Collectives, *, summed: bool) -> Array:
    """The norm where squares overflow float32; not finite only where an array is.

    Slower: it finds the largest element first. Evaluates the arrays.
    """
    peaks = [mx.abs(a).max().astype(mx.float32) for a in arrays if a.size]
    peak = float(mx.max(mx.stack(peaks))) if peaks else 0.0
    if summed:
        words = comm.all_gather_words(np.array([word_of(peak)], np.uint64))[:, 0]
        peak = float(np.max([float_of(int(word)) for word in words]))
    if not 0 < peak < float("inf"):
        return mx.array(peak)
    squares = _squared_norm([array.astype(mx.float32) / peak for array in arrays])
    return peak * mx.sqrt(comm.sum_scalar(squares) if summed else squares)


# -- pairwise norms


def _numbers(array: Array) -> Raw:
    if array.dtype == mx.float64:
        return raw(array, np.float64)
    return raw(array.astype(mx.float32), np.float32)


def _spans(
    bucket: Bucket, rank: int, is_whole: bool
) -> list[tuple[KeyPath, int, int, int]]:
    """KeyPath, start, stop and size of each entry that a rank's chunk has a part of."""
    if is_whole:
        return [(entry.path, 0, entry.size, entry.size) for entry in bucket.entries]
    return [(p.entry.path, p.start, p.stop, p.entry.size) for p in bucket.pieces(rank)]


def _nodes(
    buckets: Sequence[Bucket], rank: int, is_whole: bool
) -> list[tuple[KeyPath, Node]]:
    """The nodes that a rank holds, in the order in which it sends their sums."""
    spans = itertools.chain.from_iterable(_spans(b, rank, is_whole) for b in buckets)
    return [
        (path, node)
        for path, start, stop, size in spans
        for node in nodes_of(start, stop, size)
    ]


def _gathered(local: list[float], longest: int, comm: Collectives) -> list[list[float]]:
    padded = np.zeros(longest)
    padded[: len(local)] = local
    rows = comm.all_gather_words(padded.view(np.uint64)).view(np.float64)
    return [[float(value) for value in row] for row in rows]


# -- gradients that are not finite


def first_fault(gradients: Flat) -> str | None:
    """Return the first path, in order, that is not all finite, and how much of it."""
    for path in sorted(gradients):
        array = gradients[path]
        bad = (~mx.isfinite(array)).sum().item()
        if bad:
            return f"{path} has {bad} of {array.size} elements that are nan or inf"
    return None


def fault_text(comm: Collectives, fault: str | None, step: int) -> str:
    """Return which ranks' gradients are not finite; the same text on all ranks.

    Args:
        fault: what is not finite on this rank, or None.
    """
    local = json.dumps(fault or "all finite").encode()
    texts = [str(json.loads(text)) for text in comm.all_gather_bytes(local)]
    if set(texts) == {"all finite"}:
        texts = ["finite, but their sum is not"] * comm.size
    return (
        f"step {step} refused, nothing was changed: gradients are not finite.\n"
        f"{difference(texts)}\n"
        "skip_nonfinite=True skips such a step on all ranks and counts it."
    )
