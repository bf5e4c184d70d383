"""Messages between watchdogs, and the text on a peer."""

import os
import time

import pytest

from mlxdist.comm.flight_recorder import Status
from mlxdist.world.heartbeat import EndNotice, Heartbeat, Peer, decode, encode

HEARTBEAT = Heartbeat(
    Status(sequence=7, step=3, call="update", waiting=True, since=1.0),
    duration=4.2,
    idle=0.5,
    cpu_load=0.9,
    host="h",
    pid=11,
)


class SilentComm:
    """A communicator on which nothing arrives."""

    def Irecv(self, buffer, rank):
        return None


def silent_peer(seconds, **fields):
    """Return a peer whose last heartbeat came `seconds` ago."""
    heartbeat = Heartbeat(**{**vars(HEARTBEAT), **fields})
    return Peer(1, SilentComm(), heartbeat, last_seen=time.monotonic() - seconds)


@pytest.mark.parametrize(
    "message", [HEARTBEAT, EndNotice(True), EndNotice(False, "rank 1 failed:\n  é")]
)
def test_decode_of_an_encoded_message_returns_it(message):
    data = encode(message)
    assert data.nbytes == 1024
    assert decode(data) == message


@pytest.mark.parametrize(
    ("character", "decoded"), [("x", "x"), ("é", "é"), ("\0", "\0"), ("\ud800", "?")]
)
def test_encode_cuts_a_long_cause(character, decoded):
    data = encode(EndNotice(True, 9999 * character))
    assert data.nbytes == 1024
    cause = decode(data).cause
    assert 100 < len(cause) < 1000
    assert cause == len(cause) * decoded


def test_peer_describe_tells_computing_from_idle():
    text = silent_peer(0).describe("elsewhere")
    assert text == "rank 1 on h: in update, step 3, for 4 s; it is alive and computes"
    assert "it is alive but idle" in silent_peer(0, cpu_load=0.01).describe("h")
    at_end = silent_peer(0, status=Status(step=3, leaving=True)).describe("h")
    assert at_end == "rank 1 on h: exiting, after step 3, for 4 s"
    stuck = silent_peer(0, idle=40.0).describe("h")
    assert stuck.endswith("and its main thread is in one call for 40 s")


@pytest.mark.parametrize(
    ("fields", "works", "spins"),
    [
        ({"idle": 1.0}, True, False),
        ({"idle": 9.0}, False, True),
        ({"idle": 9.0, "cpu_load": 0.0}, False, False),  # waits for a disk
        ({"idle": 1.0, "status": Status(waiting=True)}, False, False),
        ({"idle": 1.0, "status": Status(leaving=True)}, False, False),
    ],
)
def test_peer_works_while_its_main_thread_makes_progress(fields, works, spins):
    peer = silent_peer(0, **{"status": Status(), **fields})
    assert (peer.works(5.0), peer.spins(5.0)) == (works, spins)


def test_peer_describe_of_a_silent_peer_looks_at_a_local_process():
    assert silent_peer(9).describe("elsewhere").endswith("; no heartbeat for 9 s")
    running = silent_peer(9, pid=os.getpid()).describe("h")
    assert running.endswith("its process does not let Python's threads run")
    gone = silent_peer(9, pid=2**22 + 1).describe("h")  # above Linux's highest
    assert gone.endswith("its process is gone")
