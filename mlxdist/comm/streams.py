"""The streams of MLX on which the collectives of a thread run."""

from __future__ import annotations

import threading

import mlx.core as mx

# The backend whose collectives of the user go over the same sockets as these, and which
# runs several at once on several streams.
SHARES_SOCKETS = "ring"


class CollectiveStream(threading.local):
    """The stream of the collectives that a thread starts.

    MLX's streams can be used only by the thread that made them.
    """

    def __init__(self, backend: str):
        self._backend = backend
        # Over MPI a stream of its own, as the communicator is its own: a user's
        # collective that waits for another rank must not delay these, nor be delayed.
        # Over the ring, too, since receives would block what computes on a CPU.
        has_own = backend in ("mpi", SHARES_SOCKETS)
        self._created = mx.new_stream(mx.cpu) if has_own else None
        self._sends: mx.Stream | None = None

    @property
    def sends(self) -> mx.Stream:
        """A second stream, for sends that a receive must not keep waiting."""
        self._sends = self._sends or mx.new_stream(mx.cpu)
        return self._sends

    @property
    def used(self) -> list[mx.Stream]:
        """The streams of this thread that may have something pending."""
        return [each for each in (self.of_thread(), self._sends) if each is not None]

    @property
    def of_users(self) -> mx.Stream:
        """The stream of collectives of the user, as MLX chooses it."""
        return mx.default_stream(mx.cpu)

    def of_thread(self) -> mx.Stream | None:
        """Return the stream; None for NCCL, which runs on the accelerator's own."""
        if self._backend == "nccl":
            return None
        return self._created or mx.default_stream(mx.cpu)
