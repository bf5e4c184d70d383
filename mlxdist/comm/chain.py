"""Collectives of `mx.distributed`, chained into one order.

MLX matches collectives by arrival and runs them when something needs their result, so
two ranks that print different things would swap sums. Here each collective's input
depends on the collective before it, whatever is evaluated first, and starts at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import mlx.core as mx

from ..arrays import device
from ..arrays.types import Array, Pieces
from ..layout.entries import split_counts
from .flight_recorder import Recorder
from .streams import SHARES_SOCKETS, CollectiveStream

# MLX passes the number of elements to MPI as a C int, and JACCL counts bytes in one;
# larger numbers wrap silently.
MAX_BYTES = 2**30

Group = mx.distributed.Group


@dataclass
class Lazy:
    """A collective that was started. What is computed from it is built at the end.

    Attributes:
        chain: where it was started.
        parts: results of the collectives that it consists of.
        build: makes the result of them. An accelerator may wait for an operation's
            inputs for seconds at most, so the host waits for `parts` before.
    """

    chain: Chain
    parts: Pieces
    build: Callable[[Pieces], Array]
    squares: float | None = None
    last: Array | None = None

    def __post_init__(self) -> None:
        self.last = self.chain.last if self.last is None else self.last

    def then(self, build: Callable[[Array], Array]) -> Lazy:
        """Return the collective with one more operation on its result."""
        first = self.build
        return Lazy(
            self.chain, self.parts, lambda parts: build(first(parts)), last=self.last
        )

    def finish(self) -> Array:
        self.chain.wait(self.parts, self.last)
        return self.build(self.parts)


class Chain:
    """The collectives of one group of ranks, each behind the one before it."""

    def __init__(self, group: Group, backend: str, recorder: Recorder):
        self._group, self._size = group, group.size()
        self._recorder = recorder
        self._backend = backend
        self.streams = CollectiveStream(backend)
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
            with self._recorder.waiting():
                mx.eval(self._token)
            self._token = None

    def settle(self) -> None:
        """After an error: wait for what was started, and drop the errors of MLX."""
        self._settle_streams()
        self._error = None

    def wait(self, results: Pieces, last: Array | None) -> None:
        """Wait for collectives where what uses them can't; raise earlier errors.

        Args:
            last: the last of these collectives, as `last` had it.
        """
        error, self._error = self._error, None
        if error is not None:
            raise error
        if last is not None and last is self._token and self._shares_sockets:
            self._let_users_follow([last, *results])
        if not self._tracing and device.needs_fences(self._backend):
            with self._recorder.waiting():
                mx.eval(results)

    def evaluate(self, array: Array) -> Array:
        """Wait for an array that is to be sent, and return it.

        It must be evaluated on CUDA, where a collective on the CPU looks up its input's
        memory when it is queued, before kernels that are queued have written it.

        An error of it is raised here, before other ranks wait in a collective. NCCL,
        which runs in the order of the accelerator's stream, is not kept waiting.
        """
        if array.size and not self._tracing and self._backend != "nccl":
            mx.eval(array)
        return array

    # For collectives that consist of sends and receives

    @property
    def last(self) -> Array | None:
        """The collective that was started last, as an array; None after a flush."""
        return self._token

    @property
    def stream(self) -> mx.Stream | None:
        """The stream of this thread's collectives."""
        if self._tracing and self._backend == SHARES_SOCKETS:
            return self.streams.of_users  # in the order of the trace
        return self.streams.of_thread()

    @property
    def is_tracing(self) -> bool:
        """Whether `mx.compile` traces."""
        return self._tracing

    def before_sends(self, array: Array) -> Array:
        """Return an array that is to be sent behind what was started before."""
        if self._token is None:  # but maybe a collective of the user
            array = mx.stop_gradient(array, stream=self.streams.of_users)
            self.queue(mx.stop_gradient(array, stream=self.stream))
        return self._in_order(array, self.streams.sends)

    def follow(self, array: Array) -> None:
        """Queue an array. What is started next comes behind it."""
        self.queue(array)
        self._token = array

    def _in_order(self, array: Array, stream: mx.Stream | None) -> Array:
        """Return an array as one of a stream, behind what was started before.

        It is an operation of the stream, without a copy: `depends` runs on the stream
        of its first input, and what computes must not wait for other ranks.
        """
        if self._token is not None:
            array = mx.stop_gradient(array, stream=stream)
            return mx.depends([array], [self._token])[0]
        if self._shares_sockets:
            array = mx.stop_gradient(array, stream=self.streams.of_users)
        return mx.stop_gradient(array, stream=stream)

    def _let_users_follow(self, results: Pieces) -> None:
        """Keep collectives that the user starts from now on behind these."""
        nothing = mx.zeros(1, mx.uint8, stream=self.streams.of_users)
        self.queue(mx.depends([nothing], results)[0])

    @property
    def _shares_sockets(self) -> bool:
        return self._backend == SHARES_SOCKETS and not self._tracing

    # Nothing is sent for an array without elements, which is empty on all ranks. MLX's
    # CUDA build crashes on a collective of an empty array that depends on another one.

    def all_sum(self, flat: Array) -> Lazy:
        """(n,) -> (n,), the sum over the ranks."""
        if flat.size == 0:
            return Lazy(self, [flat], only)
        pieces = split_counts(flat.size, _limit(flat))
        parts = [
            self._start(mx.distributed.all_sum, self._cut(flat, *piece))
            for piece in pieces
        ]
        return Lazy(self, parts, mx.concatenate if len(parts) > 1 else only)

    def all_gather(self, flat: Array) -> Lazy:
        """(n,) -> (ranks, n)."""
        if flat.size == 0:
            empty = mx.zeros((self._size, 0), flat.dtype)
            return Lazy(self, [empty], only)
        pieces = split_counts(flat.size, max(1, _limit(flat) // self._size))
        parts = [
            self._start(mx.distributed.all_gather, self._cut(flat, *piece))
            for piece in pieces
        ]
        return Lazy(self, parts, self._rows)

    def sum_scatter(self, rows: Array) -> Lazy:
        """(ranks, n) -> (n,), this rank's row of the sum. NCCL and JACCL only."""
        if rows.size == 0:
            return Lazy(self, [rows[0]], only)
        pieces = split_counts(rows.shape[1], max(1, _limit(rows) // self._size))
        parts = [
            self._start(
                mx.distributed.sum_scatter,
                self._cut_rows(rows, start, stop),
            )
            for start, stop in pieces
        ]
        return Lazy(self, parts, mx.concatenate if len(parts) > 1 else only)

    def _rows(self, parts: Pieces) -> Array:
        rows = [part.reshape(self._size, -1) for part in parts]
        return rows[0] if len(rows) == 1 else mx.concatenate(rows, axis=1)

    def _cut(self, flat: Array, start: int, stop: int) -> Array:
        if stop - start == flat.size:
            return flat
        return self.evaluate(flat[start:stop])

    def _cut_rows(self, rows: Array, start: int, stop: int) -> Array:
        if stop - start == rows.shape[1]:
            return mx.flatten(rows, stream=self.stream)
        return self.evaluate(rows[:, start:stop].reshape(-1))

    def _start(self, collective: Callable[..., Array], array: Array) -> Array:
        name = collective.__name__
        self._recorder.started(name, array.size, str(array.dtype), array.nbytes)
        stream = self.stream
        array = self._in_order(array, stream)
        result = collective(array, group=self._group, stream=stream)
        nothing = mx.zeros(1, mx.uint8, stream=stream)
        token = mx.depends([nothing], [result])[0]
        if not self._tracing:
            # Started now and not when it is needed: a rank that needs something else
            # first must not keep the others waiting.
            self.queue(result, token)
        self._token = token
        return result

    def queue(self, *arrays: Array) -> None:
        """Queue arrays. Where that fails, nothing is sent.

        An error of earlier work, which MLX raises here as well, stops nothing: the
        other ranks wait for this collective. `wait` raises it then.
        """
        try:
            mx.async_eval(*arrays)
        except RuntimeError as error:
            self._settle_streams()
            mx.async_eval(*arrays)
            self._error = self._error or error

    def _settle_streams(self) -> None:
        with self._recorder.waiting():
            device.settle(*self.streams.used)


def only(parts: Pieces) -> Array:
    return parts[0]


def _limit(array: Array) -> int:
    """Elements of at most `MAX_BYTES`."""
    return max(1, MAX_BYTES // int(array.itemsize))
