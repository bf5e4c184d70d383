"""The native transport: `mx.distributed` collectives, chained into one order.

MLX matches collectives by arrival and runs them when something needs their result, so
that two ranks that print different things swap sums. Here each collective's input
depends on the one before it, whatever is evaluated first, and it starts at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from ..arrays.pairwise_sum import tree_sum
from ..arrays.types import Array
from ..layout.entries import split_counts
from ..layout.sharding import Bucket
from .collectives import Pending, Traffic, Weights
from .flight_recorder import Recorder

# MLX hands MPI the number of elements as a C int; more of them wrap around silently.
MAX_COUNT = 2**30
_INTEGERS = {1: mx.uint8, 2: mx.uint16, 4: mx.uint32, 8: mx.uint64}


def all_sum_bytes(nbytes: int, ranks: int) -> int:
    """What each rank sends in the best all-reduce there is, which MPI is taken to use.

    Patarasuk and Yuan, JPDC 2009.
    """
    return round(2 * (ranks - 1) / ranks * nbytes)


@dataclass
class Lazy:
    """A collective that is already an array, evaluated when somebody looks at it."""

    array: Array
    squares: float | None = None

    def finish(self) -> Array:
        return self.array


class Native:
    """Collectives of one `mx.distributed` group. See `Collectives` for the contract."""

    name = "native"
    overlaps = True

    def __init__(self, group: Any, backend: str, recorder: Recorder):
        self.group = group
        self.rank: int = group.rank()
        self.size: int = group.size()
        self.traffic = Traffic()
        self.recorder = recorder
        self._scatters = backend in ("nccl", "jaccl")
        # Over MPI a thread of its own, beside its own communicator: a user's collective
        # that waits for another rank then holds none of ours up, nor they it.
        self._stream = mx.new_stream(mx.cpu) if backend == "mpi" else None
        self._token: Array | None = None
        self._tracing = False

    @contextmanager
    def tracing(self) -> Iterator[None]:
        """For the time in which `mx.compile` traces: a chain of its own.

        What is traced must not refer to arrays outside, nor be referred to.
        """
        outside, self._token, self._tracing = self._token, None, True
        try:
            yield
        finally:
            self._token, self._tracing = outside, False

    def flush(self) -> None:
        """Runs what is still pending, so that another transport may follow."""
        if self._token is not None:
            with self.recorder.waiting():
                mx.eval(self._token)
            self._token = None

    def _chained(self, collective: Callable[..., Array], array: Array) -> Array:
        name = collective.__name__
        self.recorder.started(name, array.size, str(array.dtype), array.nbytes)
        if self._token is not None:
            array = mx.depends([array], [self._token])[0]
        fenced = not self._tracing and mx.default_device() == mx.gpu
        if fenced:
            # Metal ends a command buffer that waits for seconds, as one does that is
            # queued behind a collective. So nothing is: both sides are evaluated.
            mx.eval(array)
        result = collective(array, group=self.group, stream=self._stream)
        self._token = mx.depends([mx.array(0, mx.uint8)], [result])[0]
        if fenced:
            mx.eval(result)
        elif not self._tracing:
            # Started now, not when somebody looks: a rank that looks at something else
            # first must not keep the others waiting.
            mx.async_eval(result)
        return result

    # Nothing travels for an array without elements, which is one on all ranks, and with
    # which MLX's CUDA build ends in a segmentation fault where it depends on another.

    def _all_sum(self, flat: Array) -> Array:
        if flat.size == 0:
            return flat
        parts = [
            self._chained(mx.distributed.all_sum, flat[start:stop])
            for start, stop in split_counts(flat.size, MAX_COUNT)
        ]
        return parts[0] if len(parts) == 1 else mx.concatenate(parts)

    def _all_gather(self, flat: Array) -> Array:
        """(n,) -> (size, n)."""
        if flat.size == 0:
            return mx.zeros((self.size, 0), flat.dtype)
        limit = max(1, MAX_COUNT // self.size)
        parts = [
            self._chained(mx.distributed.all_gather, flat[start:stop]).reshape(
                self.size, -1
            )
            for start, stop in split_counts(flat.size, limit)
        ]
        return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=1)

    def all_gather_words(self, words: NDArray[np.uint64]) -> NDArray[np.uint64]:
        gathered = self._all_gather(mx.array(words.view(np.uint32)))
        with self.recorder.waiting():
            return np.array(gathered).view(np.uint64)

    def all_gather_bytes(self, data: bytes) -> list[bytes]:
        lengths = self.all_gather_words(np.array([len(data)], np.uint64))[:, 0]
        padded = np.zeros(int(lengths.max()), np.uint8)
        padded[: len(data)] = np.frombuffer(data, np.uint8)
        rows = np.array(self._all_gather(mx.array(padded)))
        return [row[: int(n)].tobytes() for row, n in zip(rows, lengths, strict=True)]

    def broadcast(self, array: Array, root: int) -> Array:
        # Sent as integers: not every backend takes every dtype, and bits stay bits.
        flat = array.reshape(-1).view(_INTEGERS[array.itemsize])
        row = self._all_gather(flat)[root]
        result = row.view(array.dtype).reshape(array.shape)
        mx.eval(result)
        self.traffic.add((self.size - 1) * array.nbytes)
        return result

    def _weighted(self, flat: Array, weights: Weights) -> Array:
        if weights.every is None:
            own = weights.own.astype(flat.dtype)
            # A rank without examples may well have nan for its gradients.
            return mx.where(own == 0, mx.array(0, flat.dtype), flat * own)
        if weights.own == 0:
            return mx.zeros_like(flat)
        return flat if weights.own == 1 else flat * mx.array(weights.own, flat.dtype)

    def start_all_sum(
        self, parts: Sequence[Array], bucket: Bucket, weights: Weights, dtype: Any
    ) -> Pending:
        return Lazy(self._mean(parts, bucket, weights))

    def _mean(self, parts: Sequence[Array], bucket: Bucket, weights: Weights) -> Array:
        flat = self._weighted(_joined(parts, bucket), weights)
        if weights.in_tree:
            self.traffic.add((self.size - 1) * flat.nbytes)
            return tree_sum(list(self._all_gather(flat))) / weights.total
        self.traffic.add(all_sum_bytes(flat.nbytes, self.size))
        return self._all_sum(flat) / weights.total

    def start_sum_scatter(
        self, parts: Sequence[Array], bucket: Bucket, weights: Weights
    ) -> Pending:
        start, stop = bucket.span(self.rank)
        if not self._scatters or bucket.owners is not None or weights.in_tree:
            whole = self._mean(parts, bucket, weights)
            return Lazy(whole[start:stop])
        flat = self._weighted(_joined(parts, bucket), weights)
        padded = mx.pad(flat, (0, bucket.chunk * self.size - bucket.size))
        self.traffic.add((self.size - 1) * bucket.chunk * flat.itemsize)
        chunk = self._chained(mx.distributed.sum_scatter, padded)
        return Lazy(chunk[: stop - start] / weights.total)

    def start_all_gather(self, parts: Sequence[Array], bucket: Bucket) -> Pending:
        start, stop = bucket.span(self.rank)
        chunk = _joined(parts, bucket)
        if bucket.owners is None:
            padded = mx.pad(chunk, (0, bucket.chunk - (stop - start)))
            self.traffic.add((self.size - 1) * padded.nbytes)
            return Lazy(self._all_gather(padded).reshape(-1)[: bucket.size])
        # Chunks of any length: everybody adds its own to zeros, as integers, since
        # -0.0 + 0.0 is another number.
        bits = chunk.view(_INTEGERS[chunk.itemsize])
        padded = mx.pad(bits, (start, bucket.size - stop))
        self.traffic.add(all_sum_bytes(padded.nbytes, self.size))
        return Lazy(self._all_sum(padded).view(chunk.dtype))

    def sum_scalar(self, value: Array) -> Array:
        return self._all_sum(value.reshape(1)).reshape(())


def _joined(parts: Sequence[Array], bucket: Bucket) -> Array:
    if not parts:
        return mx.zeros(0, getattr(mx, bucket.dtype))
    flat = [part.reshape(-1) for part in parts]
    return flat[0] if len(flat) == 1 else mx.concatenate(flat)
