"""Heartbeats of jobs of any size, and a simulation of their ways, without MPI."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection

from mlxdist.comm.flight_recorder import Status
from mlxdist.world.digest import Digest, decode, encode
from mlxdist.world.heartbeat import Heartbeat
from mlxdist.world.tree import Node
from mlxdist.world.watchdog import TICK


def heartbeat(
    sequence: int = 5,
    *,
    waiting: bool = False,
    leaving: bool = False,
    idle: float = 0.0,
    cpu_load: float = 1.0,
) -> Heartbeat:
    """Return a heartbeat: by default of a rank that works."""
    status = Status(
        sequence, 3, "update", "exchange", waiting=waiting, leaving=leaving, since=0.0
    )
    return Heartbeat(status, 1.0, idle, cpu_load, "h", 7)


class SimulatedJob:
    """The watchdogs of N ranks, whose messages take no time.

    Args:
        beat: returns the heartbeat of a rank.

    Attributes:
        now: seconds since the start.
        sent, received: messages by rank, of the last tick.
        largest: bytes of the largest message so far.
    """

    def __init__(self, size: int, beat: Callable[[int], Heartbeat]):
        self.now = 0.0
        self.size, self.beat = size, beat
        self.nodes = [Node(rank, size, self.now) for rank in range(size)]
        self.sent: Counter[int] = Counter()
        self.received: Counter[int] = Counter()
        self.largest = 0

    def tick(self, stopped: Collection[int] = (), *, seconds: float = TICK) -> None:
        """All ranks that are not stopped send, and then receive."""
        self.now += seconds
        self.sent, self.received = Counter(), Counter()
        messages: list[tuple[int, int, bytes]] = []
        for rank in set(range(self.size)) - set(stopped):
            node, beat = self.nodes[rank], self.beat(rank)
            if node.parent is not None:
                data = encode(node.subtree(beat, self.now))
                messages.append((rank, node.parent, data))
            data = encode(node.job(beat, self.now)) if node.children else b""
            messages += [(rank, child, data) for child in node.children]
        for sender, receiver, data in messages:
            self.sent[sender] += 1
            self.received[receiver] += 1
            self.largest = max(self.largest, len(data))
            message = decode(data)
            assert isinstance(message, Digest)
            self.nodes[receiver].receive(sender, message, self.now)

    def run(self, seconds: float, stopped: Collection[int] = ()) -> None:
        """Let some seconds pass, in four long ticks."""
        for _ in range(4):
            self.tick(stopped, seconds=seconds / 4)

    def job(self, rank: int) -> Digest:
        """Return the job as a rank knows it."""
        return self.nodes[rank].job(self.beat(rank), self.now)
