"""Decisions on a job that may be stuck, from what one rank knows of the others."""

from __future__ import annotations

from dataclasses import dataclass

from ..comm.flight_recorder import Status
from .digest import Digest
from .heartbeat import Peer


@dataclass
class View:
    """The job as one rank sees it.

    Args:
        rank, host, status: of this rank.
        idle: seconds since its main thread has last made progress.
        job: the digest of all ranks.
    """

    rank: int
    host: str
    status: Status
    idle: float
    job: Digest

    def __post_init__(self) -> None:
        others = (peer for peer in self.job.peers if peer.rank != self.rank)
        self.peers = sorted(others, key=lambda peer: peer.rank)

    def silent(self, limit: float) -> list[Peer]:
        """Return the peers that are stopped or gone."""
        return [peer for peer in self.peers if peer.silence > limit]

    def departed(self) -> list[Peer]:
        """Return the peers that have finished, while this rank waits for them."""
        if not self.status.waiting or self.status.leaving:
            return []
        # A peer that has made the same calls may exit while this rank still receives.
        return [
            peer
            for peer in self.peers
            if peer.status.leaving and peer.status.sequence < self.status.sequence
        ]

    def may_go_on(self, limit: float) -> bool:
        """Whether this rank works, or waits for one that does."""
        if self.status.leaving:  # nothing depends on it: others may wait for a disk
            return not all(peer.spins(limit) for peer in self.laggards())
        works = not self.status.waiting and self.idle < limit
        return works or any(peer.works(limit) for peer in self.peers)

    def laggards(self) -> list[Peer]:
        """Return the peers for which this rank waits: those behind it, if there are."""
        at_work = [peer for peer in self.peers if not peer.status.leaving]
        if self.status.leaving:
            return at_work or self.peers
        behind = [p for p in self.peers if p.status.sequence < self.status.sequence]
        return behind or [p for p in at_work if not p.status.waiting] or self.peers

    def report(self) -> str:
        """Return a line on each laggard, and how many others there are."""
        peers = self.laggards()
        others = self._number_of_laggards() - len(peers)
        return self.describe(peers) + (
            f"\n  and {others} more ranks" if others > 0 else ""
        )

    def describe(self, peers: list[Peer]) -> str:
        """Return a line on each peer."""
        return "\n".join(f"  {peer.describe(self.host)}" for peer in peers)

    def _number_of_laggards(self) -> int:
        """How many there are in the whole job; 0 where the digest does not say."""
        if self.status.leaving:
            return self.job.at_work
        is_ahead = self.status.sequence == self.job.sequence
        return self.job.behind if is_ahead else 0
