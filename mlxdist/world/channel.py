"""Messages between watchdogs over MPI."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from .digest import MAX_BYTES, Message, decode, encode

if TYPE_CHECKING:
    from mpi4py import MPI

# Seconds for which `notify` waits until MPI has connected to all ranks, as over TCP.
_CONNECTING = 0.5


class Channel:
    """Sends and receives messages on a communicator of its own.

    A message is dropped while the one before it to the same rank is under way: a
    stopped rank receives none, and they must not pile up.
    """

    def __init__(self, comm: MPI.Intracomm):
        from mpi4py import MPI

        self._comm = comm
        self._any, self._status, self._done = MPI.ANY_SOURCE, MPI.Status(), MPI.Request
        self._sending: dict[int, tuple[MPI.Request, bytes]] = {}
        self._inbox = np.zeros(MAX_BYTES, np.uint8)
        self._receiving = comm.Irecv(self._inbox, self._any)

    def send(self, message: Message, ranks: list[int]) -> None:
        """Start to send a message."""
        data = encode(message)
        for rank in ranks:
            earlier = self._sending.get(rank)
            if earlier is None or earlier[0].Test():
                self._sending[rank] = (self._comm.Isend(data, rank), data)

    def notify(self, message: Message) -> None:
        """Send a message to all other ranks, directly. May run in another thread."""
        data, local = encode(message), self._comm.Get_rank()
        ranks = (rank for rank in range(self._comm.Get_size()) if rank != local)
        requests = [self._comm.Isend(data, rank) for rank in ranks]
        deadline = time.monotonic() + _CONNECTING
        while not self._done.Testall(requests) and time.monotonic() < deadline:
            time.sleep(0.005)

    def receive(self) -> list[tuple[int, Message]]:
        """Return the messages that have arrived with their senders, oldest first."""
        messages = []
        while self._receiving.Test(self._status):
            data = self._inbox[: self._status.Get_count()].tobytes()
            messages.append((self._status.Get_source(), decode(data)))
            self._receiving = self._comm.Irecv(self._inbox, self._any)
        return messages

    def close(self) -> None:
        """Take the last messages, and stop. The other ranks send none any more."""
        self.receive()
        self._receiving.Cancel()
        self._receiving.Wait()
        for request, _ in self._sending.values():
            request.Wait()
