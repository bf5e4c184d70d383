"""The native transport: lazy `mx.distributed` collectives, chained into one order.

MLX matches collectives by arrival and runs them when something needs their result, so
two ranks that print different things would swap sums. Here each collective's input
depends on the collective before it, whatever is evaluated first, and starts at once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from ..arrays import device
from ..arrays.dtypes import dtype_of
from ..arrays.pairwise_sum import pairwise_sum
from ..arrays.types import Array, Dtype
from ..layout import traffic
from ..layout.entries import split_counts
from ..layout.sharding import Bucket
from .collectives import Pending, Traffic
from .flight_recorder import Recorder
from .reduction import Weights, weigh

# MLX passes the number of elements to MPI as a C int; larger numbers wrap silently.
MAX_COUNT = 2**30
_INTEGERS = {1: mx.uint8, 2: mx.uint16, 4: mx.uint32, 8: mx.uint64}
_HAVE_REDUCE_SCATTER = ("nccl", "jaccl")


Group = mx.distributed.Group


@dataclass
class Lazy:
    """A collective that is an array already, evaluated when something needs it.

    Attributes:
        check: raises the error of what the collectives were given.
    """

    array: Array
    check: Callable[[], None]
    squares: float | None = None

    def finish(self) -> Array:
        self.check()
        return self.array


class CollectiveStream(threading.local):
    """The stream of the collectives that a thread starts.

    MLX's streams can be used only by the thread that made them.
    """

    def __init__(self, backend: str):
        self._backend = backend
        # Over MPI a stream of its own, as the communicator is its own: a user's
        # collective that waits for another rank must not delay these, nor be delayed.
        self._created = mx.new_stream(mx.cpu) if backend == "mpi" else None

    def of_thread(self) -> mx.Stream | None:
        """Return the stream; None for NCCL, which runs on the accelerator's own."""
        if self._backend == "nccl":
            return None
        return self._created or mx.default_stream(mx.cpu)


class NativeTransport:
    """Collectives of one `mx.distributed` group. See `Collectives` for the contract."""

    name = "native"
    overlaps = True
    adds_in_rank_order = False

    def __init__(self, group: Group, backend: str, recorder: Recorder):
        self.group = group
        self.rank = group.rank()
        self.size = group.size()
        self.traffic = Traffic()
        self.recorder = recorder
        self._has_reduce_scatter = backend in _HAVE_REDUCE_SCATTER
        self._backend = backend
        self._stream = CollectiveStream(backend)
        self._token: Array | None = None
        self._tracing = False
        self._error: RuntimeError | None = None

    @contextmanager
    def tracing(self) -> Iterator[None]:
        """While `mx.compile` traces: use a chain of its own.

        Traced arrays and arrays outside of the trace must not depend on one another.
        """
        outside, self._token, self._tracing = self._token, None, True
        try:
            yield
        finally:
            self._token, self._tracing = outside, False

    def flush(self) -> None:
        """Run what is pending, so that another transport may follow."""
        if self._token is not None:
            with self.recorder.waiting():
                mx.eval(self._token)
            self._token = None

    def settle(self) -> None:
        self._settle_streams()
        self._error = None

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
        # As integers: not every backend takes every dtype, and the bits stay as is.
        flat = array.reshape(-1).view(_INTEGERS[array.itemsize])
        row = self._all_gather(flat)[root]
        result = row.view(array.dtype).reshape(array.shape)
        mx.eval(result)
        self.traffic.add(traffic.gather_whole_bytes(array.nbytes, self.size))
        return result

    def start_all_reduce(
        self, parts: Sequence[Array], bucket: Bucket, weights: Weights, dtype: Dtype
    ) -> Pending:
        return self._lazy(self._mean(parts, bucket, weights))

    def start_reduce_scatter(
        self, parts: Sequence[Array], bucket: Bucket, weights: Weights
    ) -> Pending:
        start, stop = bucket.span(self.rank)
        if not self._reduces_by_scatter(bucket, pairwise=weights.pairwise):
            return self._lazy(self._mean(parts, bucket, weights)[start:stop])
        flat = weigh(_joined(parts, bucket), weights)
        padded = mx.pad(flat, (0, bucket.chunk * self.size - bucket.size))
        self.traffic.add(
            self.reduce_scatter_bytes(bucket, flat.itemsize, pairwise=False)
        )
        chunk = self._chained(mx.distributed.sum_scatter, padded)
        return self._lazy(chunk[: stop - start] / weights.total)

    def start_all_gather(self, parts: Sequence[Array], bucket: Bucket) -> Pending:
        start, stop = bucket.span(self.rank)
        chunk = _joined(parts, bucket)
        if not self._tracing and device.on_cpu():
            mx.eval(chunk)  # an error of the update is raised before a rank waits
        self.traffic.add(self.all_gather_bytes_sent(bucket, chunk.itemsize))
        if bucket.owners is None:
            padded = mx.pad(chunk, (0, bucket.chunk - (stop - start)))
            return self._lazy(self._all_gather(padded).reshape(-1)[: bucket.size])
        # Spans of any length: every rank adds its own to zeros. As integers, since
        # -0.0 + 0.0 is 0.0.
        bits = chunk.view(_INTEGERS[chunk.itemsize])
        padded = mx.pad(bits, (start, bucket.size - stop))
        return self._lazy(self._all_sum(padded).view(chunk.dtype))

    def sum_scalar(self, value: Array) -> Array:
        return self._all_sum(value.reshape(1)).reshape(())

    def all_reduce_bytes(
        self, bucket: Bucket, item_size: int, mean_item_size: int, *, pairwise: bool
    ) -> int:
        nbytes = bucket.size * item_size
        if pairwise:
            return traffic.gather_whole_bytes(nbytes, self.size)
        return traffic.all_reduce_bytes(nbytes, self.size)

    def reduce_scatter_bytes(
        self, bucket: Bucket, item_size: int, *, pairwise: bool
    ) -> int:
        if self._reduces_by_scatter(bucket, pairwise=pairwise):
            return traffic.padded_all_gather_bytes(bucket, item_size)
        return self.all_reduce_bytes(bucket, item_size, item_size, pairwise=pairwise)

    def all_gather_bytes_sent(self, bucket: Bucket, item_size: int) -> int:
        if bucket.owners is None:
            return traffic.padded_all_gather_bytes(bucket, item_size)
        return traffic.all_reduce_bytes(bucket.size * item_size, self.size)

    def _reduces_by_scatter(self, bucket: Bucket, *, pairwise: bool) -> bool:
        return self._has_reduce_scatter and bucket.owners is None and not pairwise

    def _mean(self, parts: Sequence[Array], bucket: Bucket, weights: Weights) -> Array:
        flat = weigh(_joined(parts, bucket), weights)
        self.traffic.add(
            self.all_reduce_bytes(bucket, flat.itemsize, 0, pairwise=weights.pairwise)
        )
        if weights.pairwise:
            return pairwise_sum(list(self._all_gather(flat))) / weights.total
        return self._all_sum(flat) / weights.total

    # Nothing is sent for an array without elements, which is empty on all ranks. MLX's
    # CUDA build crashes on a collective of an empty array that depends on another one.

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

    def _chained(self, collective: Callable[..., Array], array: Array) -> Array:
        name = collective.__name__
        self.recorder.started(name, array.size, str(array.dtype), array.nbytes)
        stream = self._stream.of_thread()
        fenced = not self._tracing and device.needs_fences(self._backend)
        if fenced:
            mx.eval(array)
        # An operation of the collectives' stream, without a copy: `depends` runs on the
        # stream of its first input, and what computes must not wait for other ranks.
        array = mx.stop_gradient(array, stream=stream)
        if self._token is not None:
            array = mx.depends([array], [self._token])[0]
        result = collective(array, group=self.group, stream=stream)
        nothing = mx.zeros(1, mx.uint8, stream=stream)
        token = mx.depends([nothing], [result])[0]
        if not self._tracing:
            # Started now and not when it is needed: a rank that needs something else
            # first must not keep the others waiting.
            self._start(result, token)
        self._token = token
        if fenced:
            mx.eval(result)
        return result

    def _settle_streams(self) -> None:
        stream = self._stream.of_thread()
        with self.recorder.waiting():
            device.settle(*([] if stream is None else [stream]))

    def _start(self, *arrays: Array) -> None:
        """Queue arrays. Where that fails, nothing is sent.

        An error of earlier work, which MLX raises here as well, stops nothing: the
        other ranks wait for this collective. `_raise_error` raises it then.
        """
        try:
            mx.async_eval(*arrays)
        except RuntimeError as error:
            self._settle_streams()
            mx.async_eval(*arrays)
            self._error = self._error or error

    def _lazy(self, array: Array) -> Lazy:
        return Lazy(array, self._raise_error)

    def _raise_error(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error


def _joined(parts: Sequence[Array], bucket: Bucket) -> Array:
    if not parts:
        return mx.zeros(0, dtype_of(bucket.dtype))
    flat = [part.reshape(-1) for part in parts]
    return flat[0] if len(flat) == 1 else mx.concatenate(flat)
