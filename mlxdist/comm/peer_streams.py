"""Messages between ranks that MLX's own threads send and receive, behind what computes.

They need nothing of Python while they are on their way. A thread of Python would have
to take the interpreter's lock to hand on what has arrived, and some functions of MLX
hold that lock while they wait for an array: `mx.save`, and `mx.clear_cache`.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import mlx.core as mx

from ..arrays.types import Array, Pieces
from ..layout.entries import split_counts
from .flight_recorder import Recorder

# Streams in each direction. MPI keeps one large message of a pair of ranks on the wire;
# with one stream at N = 4, 1 Gbit/s, a gather took 1.5 of the least time, 1.2 with 3.
LANES = 3
# MLX passes the number of bytes to MPI as a C int.
MAX_BYTES = 2**30


class _Streams(threading.local):
    """(to send on, to receive on), `lanes` times: MLX's streams belong to a thread."""

    def __init__(self, lanes: int):
        self.pairs = [
            (mx.new_stream(mx.cpu), mx.new_stream(mx.cpu)) for _ in range(lanes)
        ]


class PeerStreams:
    """Point-to-point messages of one `mx.distributed` group of two ranks or more.

    Args:
        group: a group that nothing else uses: MLX matches messages by their order.
        recorder: notified while this rank waits for others.
    """

    def __init__(self, group: mx.distributed.Group, recorder: Recorder):
        self.rank, self.size = group.rank(), group.size()
        self._group = group
        self._recorder = recorder
        self._streams = _Streams(min(LANES, self.size - 1))
        self._nothing = mx.zeros(1, mx.uint8, stream=mx.cpu)
        mx.eval(self._nothing)
        self._last: Pieces = []  # what was queued last: all else is complete before

    def exchange(self, row: Array, sizes: Sequence[int]) -> Pieces:
        """Start to send a vector to all other ranks, and to receive theirs.

        Called by all ranks in the same order.

        Args:
            row: bytes, evaluated. Their memory is kept until they are sent.
            sizes: of each rank's vector.

        Returns:
            Each rank's vector, in rank order: queued, and ready once it has arrived.
        """
        rows: Pieces = [row] * self.size
        pairs, last = self._streams.pairs, []
        for step in range(1, self.size):
            # The same lane at both ends, so that two messages of a pair never cross.
            send, receive = pairs[(step - 1) % len(pairs)]
            last += self._send(row, (self.rank + step) % self.size, send)
            source = (self.rank - step) % self.size
            rows[source] = self._receive(sizes[source], source, receive)
        self._last = last + rows
        return rows

    def wait(self) -> None:
        """Return when all messages have been sent and received."""
        if self._last:
            with self._recorder.waiting():
                mx.eval(self._last)
        self._last = []

    def _send(self, row: Array, to: int, stream: mx.Stream) -> Pieces:
        tokens: Pieces = []
        for start, stop in _parts(row.size):
            part = row[start:stop]
            sent = mx.distributed.send(part, to, group=self._group, stream=stream)
            # An operation behind it whose input it is: MLX itself does not keep the
            # memory of a message until it is sent.
            nothing = mx.stop_gradient(self._nothing, stream=stream)
            tokens.append(mx.depends([nothing], [sent])[0])
            mx.async_eval(tokens[-1])
        return tokens

    def _receive(self, nbytes: int, source: int, stream: mx.Stream) -> Array:
        parts: Pieces = []
        for start, stop in _parts(nbytes):
            part = mx.distributed.recv(
                (stop - start,), mx.uint8, source, group=self._group, stream=stream
            )
            mx.async_eval(part)
            parts.append(part)
        if not parts:
            return self._nothing[:0]
        return parts[0] if len(parts) == 1 else mx.concatenate(parts, stream=stream)


def _parts(nbytes: int) -> list[tuple[int, int]]:
    """[start, stop) of each message; none for a vector without bytes."""
    return split_counts(nbytes, MAX_BYTES) if nbytes else []
