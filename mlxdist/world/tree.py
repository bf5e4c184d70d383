"""The way of the heartbeats: a tree of ranks, with rank 0 as its root.

Each rank sends its parent a digest of its part of the tree, and its children the digest
of the whole job that came from the root. So a job of N ranks sends 2 * (N - 1) messages
per tick, and no rank more than 33. Up to 33 ranks, rank 0 is everybody's parent. With
1,024 ranks, a heartbeat takes four ticks to reach all.

A rank that is silent is noticed by its parent and its children: its parent has the
others know, and its children need no message for it.
"""

from __future__ import annotations

from . import digest
from .digest import Digest
from .heartbeat import Heartbeat, Peer

FAN_OUT = 32  # children of a rank


def parent_of(rank: int) -> int | None:
    """Return the rank to which a rank sends its digests; None for rank 0."""
    return (rank - 1) // FAN_OUT if rank else None


def children_of(rank: int, size: int) -> range:
    """Return the ranks whose digests a rank receives."""
    first = rank * FAN_OUT + 1
    return range(min(first, size), min(first + FAN_OUT, size))


class Node:
    """What one rank has received. Without communication: `now` is any clock's time.

    Attributes:
        parent: rank to which `subtree` is sent; None for rank 0.
        children: ranks to which `job` is sent.
    """

    def __init__(self, rank: int, size: int, now: float):
        self.parent = parent_of(rank)
        self.children = children_of(rank, size)
        self._rank = rank
        nothing = [*self.children, *([] if self.parent is None else [self.parent])]
        self._received = {r: (now, digest.of_rank(Peer(r))) for r in nothing}

    def receive(self, sender: int, message: Digest, now: float) -> None:
        """Take the digest of a child or of the parent."""
        self._received[sender] = (now, message)

    def forgive(self, seconds: float) -> None:
        """Discount time in which this rank could receive nothing."""
        self._received = {
            rank: (time + seconds, message)
            for rank, (time, message) in self._received.items()
        }

    def subtree(self, heartbeat: Heartbeat, now: float) -> Digest:
        """Return the digest of this rank and all below it."""
        local = digest.of_rank(Peer(self._rank, heartbeat))
        return digest.merged([local, *(self._from(r, now) for r in self.children)])

    def job(self, heartbeat: Heartbeat, now: float) -> Digest:
        """Return the digest of all ranks, with this one among its peers."""
        if self.parent is None:
            message = self.subtree(heartbeat, now)
        else:
            message = self._from(self.parent, now)
        return message.including(Peer(self._rank, heartbeat))

    def _from(self, sender: int, now: float) -> Digest:
        time, message = self._received[sender]
        return message.after(now - time, sender)
