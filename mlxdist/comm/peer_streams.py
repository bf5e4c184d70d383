"""Messages between ranks that MLX's own threads send and receive, behind what computes.

They need nothing of Python while they are on their way. A thread of Python would have
to take the interpreter's lock to hand on what has arrived, and some functions of MLX
hold that lock while they wait for an array: `mx.save`, and `mx.clear_cache`.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence

import mlx.core as mx

from ..arrays import device
from ..arrays.types import Array, Pieces
from ..layout.entries import split_counts
from .flight_recorder import Recorder

# Messages that are under way at once in each direction. MPI announces a large message,
# and sends it once the other rank has answered; the answer queues behind what that rank
# is sending. With one message at a time the wire idles meanwhile: gathers over 1 Gbit/s
# took up to 1.9 of the least time.
MOST_LANES = 3
# MLX passes the number of bytes to MPI as a C int.
MAX_BYTES = 2**30


class _Streams(threading.local):
    """(to send on, to receive on) of each lane: MLX's streams belong to a thread."""

    def __init__(self, lanes: int):
        self.pairs = [
            (mx.new_stream(mx.cpu), mx.new_stream(mx.cpu)) for _ in range(lanes)
        ]


class PeerStreams:
    """Point-to-point messages of one `mx.distributed` group of two ranks or more.

    Args:
        groups: of the same ranks, which nothing else uses: MLX matches the messages of
            a group by their order. One for each message under way.
        recorder: notified while this rank waits for others.
    """

    def __init__(self, groups: Sequence[mx.distributed.Group], recorder: Recorder):
        self.rank, self.size = groups[0].rank(), groups[0].size()
        self._groups = list(groups)
        self._recorder = recorder
        self._streams = _Streams(len(groups))
        self._next_lane = 0
        self._nothing = mx.zeros(1, mx.uint8, stream=mx.cpu)
        mx.eval(self._nothing)
        # What was queued last in each lane: all else is complete before.
        self._last: deque[Pieces] = deque(maxlen=len(groups))

    def exchange(self, row: Array, sizes: Sequence[int]) -> Pieces:
        """Start to send a vector to all other ranks, and to receive theirs.

        Called by all ranks in the same order.

        Args:
            row: bytes, evaluated. Their memory is kept until they are sent.
            sizes: of each rank's vector.

        Returns:
            Each rank's vector, in rank order: queued, and ready once it has arrived.
        """
        with device.unlimited_memory():
            return self._queue(row, sizes)

    def wait(self) -> None:
        """Return when all messages have been sent and received."""
        if self._last:
            with self._recorder.waiting():
                mx.eval(list(self._last))
        self._last.clear()

    def _queue(self, row: Array, sizes: Sequence[int]) -> Pieces:
        rows: Pieces = [row] * self.size
        last: Pieces = []
        for step in range(1, self.size):
            lane = self._next_lane  # the same one at both ends of a message
            self._next_lane = (lane + 1) % len(self._groups)
            last += self._send(row, (self.rank + step) % self.size, lane)
            source = (self.rank - step) % self.size
            rows[source] = self._receive(sizes[source], source, lane)
        self._last.append(last + rows)
        return rows

    def _send(self, row: Array, to: int, lane: int) -> Pieces:
        group, (stream, _) = self._groups[lane], self._streams.pairs[lane]
        tokens: Pieces = []
        for start, stop in _parts(row.size):
            part = row[start:stop]
            sent = mx.distributed.send(part, to, group=group, stream=stream)
            # An operation behind it whose input it is: MLX itself does not keep the
            # memory of a message until it is sent.
            nothing = mx.stop_gradient(self._nothing, stream=stream)
            tokens.append(mx.depends([nothing], [sent])[0])
            mx.async_eval(tokens[-1])
        return tokens

    def _receive(self, nbytes: int, source: int, lane: int) -> Array:
        group, (_, stream) = self._groups[lane], self._streams.pairs[lane]
        parts: Pieces = []
        for start, stop in _parts(nbytes):
            part = mx.distributed.recv(
                (stop - start,), mx.uint8, source, group=group, stream=stream
            )
            mx.async_eval(part)
            parts.append(part)
        if not parts:
            return self._nothing[:0]
        return parts[0] if len(parts) == 1 else mx.concatenate(parts, stream=stream)


def _parts(nbytes: int) -> list[tuple[int, int]]:
    """[start, stop) of each message; none for a vector without bytes."""
    return split_counts(nbytes, MAX_BYTES) if nbytes else []
