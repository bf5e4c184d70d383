"""What a rank knows of another one, and the text on it."""

import os

import msgspec
import pytest

from mlxdist.comm.flight_recorder import Status
from mlxdist.world.heartbeat import Heartbeat, Peer

HEARTBEAT = Heartbeat(
    Status(sequence=7, step=3, call="update", waiting=True, since=1.0),
    duration=4.2,
    idle=0.5,
    cpu_load=0.9,
    host="h",
    pid=11,
)


def silent_peer(seconds, **fields):
    """Return a peer whose last heartbeat came `seconds` ago."""
    heartbeat = msgspec.structs.replace(HEARTBEAT, **fields)
    return Peer(1, heartbeat, silence=seconds, age=seconds)


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


def test_peer_works_no_longer_where_its_heartbeat_is_old():
    """A heartbeat that other ranks pass on is older than the silence of its rank."""
    heartbeat = msgspec.structs.replace(HEARTBEAT, status=Status())
    assert Peer(1, heartbeat, age=4.4).works(5.0)
    assert not Peer(1, heartbeat, age=4.6).works(5.0)


def test_peer_without_a_heartbeat_neither_works_nor_spins():
    peer = Peer(3, silence=7.0, age=7.0)
    assert (peer.works(9.0), peer.spins(0.0)) == (False, False)
    assert peer.describe("h") == (
        "rank 3 on an unknown host: in user code, after step 0, for 7 s; "
        "no heartbeat for 7 s"
    )


def test_peer_describe_of_a_silent_peer_looks_at_a_local_process():
    assert silent_peer(9).describe("elsewhere").endswith("; no heartbeat for 9 s")
    running = silent_peer(9, pid=os.getpid()).describe("h")
    assert running.endswith("its process does not let Python's threads run")
    gone = silent_peer(9, pid=2**22 + 1).describe("h")  # above Linux's highest
    assert gone.endswith("its process is gone")
