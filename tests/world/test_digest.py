"""Messages between watchdogs."""

import random

import msgspec
import pytest

from mlxdist.world import digest
from mlxdist.world.digest import MAX_BYTES, Digest, EndNotice, decode, encode
from mlxdist.world.heartbeat import Peer
from tests.support.heartbeats import heartbeat


def digest_of(beats):
    peers = [Peer(rank, beat) for rank, beat in enumerate(beats)]
    return digest.merged(map(digest.of_rank, peers))


@pytest.mark.parametrize(
    "message",
    [
        Digest(),
        digest_of([heartbeat(), heartbeat(7, leaving=True)]),
        digest.of_rank(Peer(3)),
        EndNotice(True),
        EndNotice(False, "rank 1 failed:\n  é"),
    ],
)
def test_decode_of_an_encoded_message_returns_it(message):
    assert decode(encode(message)) == message


@pytest.mark.parametrize(
    ("character", "decoded"), [("x", "x"), ("é", "é"), ("\0", "\0"), ("\ud800", "?")]
)
def test_encode_cuts_a_long_cause(character, decoded):
    data = encode(EndNotice(True, 9999 * character))
    assert len(data) < 1100
    cause = decode(data).cause
    assert 500 < len(cause) <= 1024
    assert cause == len(cause) * decoded


def test_encode_drops_the_least_important_peers_of_a_long_digest():
    beats = [heartbeat(rank, waiting=True) for rank in range(99)]
    message = digest_of([msgspec.structs.replace(b, host="é" * 999) for b in beats])
    data = encode(message)
    assert len(data) <= MAX_BYTES
    peers = decode(data).peers
    assert 1 <= len(peers) < len(message.peers)
    assert peers == message.peers[: len(peers)]


def test_digest_has_few_peers_and_counts_all():
    beats = [heartbeat(rank // 2, leaving=rank < 9) for rank in range(1024)]
    message = digest_of(beats)
    assert len(message.peers) <= 14
    assert (message.ranks, message.at_work, message.behind) == (1024, 1015, 1022)


def test_merged_digests_have_the_peers_of_the_digest_of_all():
    """So that it makes no difference by which way heartbeats come."""
    draw = random.Random(3)
    for _ in range(20):
        peers = [
            Peer(
                rank,
                heartbeat(
                    draw.randrange(9),
                    waiting=draw.random() < 0.5,
                    leaving=draw.random() < 0.3,
                    idle=draw.random(),
                    cpu_load=draw.random(),
                ),
                silence=draw.random(),
            )
            for rank in range(100)
        ]
        whole = digest.merged(map(digest.of_rank, peers))
        parts = [
            digest.merged(map(digest.of_rank, peers[start : start + 7]))
            for start in range(0, 100, 7)
        ]
        assert digest.merged(parts) == whole


def test_digest_has_a_rank_that_works_among_stopped_and_stuck_ones():
    """Else a job would end though one of its ranks works."""
    stuck = [Peer(rank, heartbeat(idle=500.0)) for rank in range(8)]
    working = Peer(8, heartbeat(9, idle=1.0))
    stopped = Peer(9, heartbeat(9, idle=0.0), silence=600.0, age=600.0)
    peers = [*stuck, working, stopped]
    assert working in digest.merged(map(digest.of_rank, peers)).peers
