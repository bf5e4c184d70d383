"""Messages between watchdogs: a digest of many ranks, and the notice that a job ends.

A digest has at most 15 ranks, whatever the size of the job. It has those on which a
decision can depend (see `stall`): a digest of digests has them as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain

import msgspec

from .heartbeat import Peer

# Bytes of the longest message. MPI sends so much at once, without waiting for the
# receiver: Open MPI's limit is 4096 in shared memory, and more over TCP.
MAX_BYTES = 3840
_CAUSE_BYTES = 1024


class Digest(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """Some ranks of a job, or of a part of it, and how many there are.

    Attributes:
        peers: most important first.
        at_work: how many ranks have not finished yet.
        sequence: the most collectives that a rank has started.
        ahead: how many ranks have started so many.
        ranks: how many ranks the digest is of.
    """

    peers: tuple[Peer, ...] = ()
    at_work: int = 0
    sequence: int = 0
    ahead: int = 0
    ranks: int = 0

    @property
    def behind(self) -> int:
        """How many ranks have started fewer collectives than others."""
        return self.ranks - self.ahead

    def after(self, seconds: float, sender: int) -> Digest:
        """Return the digest some seconds after it came, with nothing from its sender
        since then."""
        replace = msgspec.structs.replace
        peers = tuple(
            replace(
                peer,
                age=peer.age + seconds,
                silence=seconds if peer.rank == sender else peer.silence,
            )
            for peer in self.peers
        )
        return replace(self, peers=peers)

    def including(self, peer: Peer) -> Digest:
        """Return the digest with a rank that may not be among its peers."""
        if any(peer.rank == other.rank for other in self.peers):
            return self
        return msgspec.structs.replace(self, peers=(peer, *self.peers))


class EndNotice(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """The sender is about to end the job.

    `print_stacks` asks the receivers to print their Python stacks. `cause` says why,
    for their records, since those of other hosts may be out of reach.
    """

    print_stacks: bool
    cause: str = ""


Message = Digest | EndNotice
_decoder = msgspec.msgpack.Decoder(Message)

# Which ranks are in a digest: the first of each order, most important first. Two of
# those of which one decides, since the receiver may be the other one.
_ORDERS: tuple[tuple[int, Callable[[Peer], bool], Callable[[Peer], float]], ...] = (
    (3, lambda peer: True, lambda peer: -peer.silence),
    (2, lambda peer: peer.status.leaving, lambda peer: peer.status.sequence),
    (2, lambda peer: _is_active(peer), lambda peer: _idle(peer) + peer.age),
    (1, lambda peer: not peer.status.leaving, lambda peer: _idle(peer)),
    (1, lambda peer: not peer.status.leaving, lambda peer: _cpu_load(peer)),
    (5, lambda peer: not peer.status.leaving, lambda peer: peer.status.sequence),
)


def of_rank(peer: Peer) -> Digest:
    """Return the digest of one rank."""
    status = peer.status
    return Digest((peer,), int(not status.leaving), status.sequence, 1, 1)


def merged(digests: Iterable[Digest]) -> Digest:
    """Return the digest of all ranks of some digests, which share none."""
    parts = list(digests)
    peers = _select(list(chain.from_iterable(part.peers for part in parts)))
    sequence = max((part.sequence for part in parts), default=0)
    return Digest(
        peers,
        sum(part.at_work for part in parts),
        sequence,
        sum(part.ahead for part in parts if part.sequence == sequence),
        sum(part.ranks for part in parts),
    )


def _select(peers: list[Peer]) -> tuple[Peer, ...]:
    selected: dict[int, Peer] = {}
    for count, belongs, key in _ORDERS:
        first = sorted(filter(belongs, peers), key=lambda p: (key(p), p.rank))[:count]
        selected.update((peer.rank, peer) for peer in first)
    return tuple(selected.values())


def _is_active(peer: Peer) -> bool:
    status = peer.status
    return peer.heartbeat is not None and not (status.waiting or status.leaving)


def _idle(peer: Peer) -> float:
    return 0.0 if peer.heartbeat is None else peer.heartbeat.idle


def _cpu_load(peer: Peer) -> float:
    return 0.0 if peer.heartbeat is None else peer.heartbeat.cpu_load


def encode(message: Message) -> bytes:
    """Return a message as at most 3840 bytes: a longer one is cut."""
    if isinstance(message, EndNotice):
        data = message.cause.encode(errors="replace")[:_CAUSE_BYTES]
        cause = data.decode(errors="ignore")
        return msgspec.msgpack.encode(EndNotice(message.print_stacks, cause))
    data = msgspec.msgpack.encode(message)
    while len(data) > MAX_BYTES:  # of names and phases of unusual length
        message = msgspec.structs.replace(message, peers=message.peers[:-1])
        data = msgspec.msgpack.encode(message)
    return data


def decode(data: bytes | memoryview) -> Message:
    """Return the message that `encode` made into bytes."""
    message: Message = _decoder.decode(data)
    return message
