"""Decisions on a job that may be stuck."""

import pytest

from mlxdist.comm.flight_recorder import Status
from mlxdist.world import digest
from mlxdist.world.heartbeat import Peer
from mlxdist.world.stall import View
from tests.support.heartbeats import heartbeat

SIZES = [2, 3, 4, 32, 1024]


def view_of(beats, rank=0, **fields):
    """Return what a rank sees, where all ranks have sent their heartbeats just now."""
    peers = [Peer(r, beat) for r, beat in enumerate(beats)]
    job = digest.merged(map(digest.of_rank, peers))
    fields = {"status": beats[rank].status, "idle": beats[rank].idle, **fields}
    return View(rank, "h", job=job, **fields)


@pytest.mark.parametrize("size", SIZES)
def test_departed_is_a_rank_that_left_with_fewer_calls(size):
    waiting = heartbeat(9, waiting=True)
    beats = [waiting] * (size - 1) + [heartbeat(8, leaving=True)]
    assert [peer.rank for peer in view_of(beats).departed()] == [size - 1]
    beats[-1] = heartbeat(9, leaving=True)  # it has made the same calls
    assert view_of(beats).departed() == []
    beats[:2] = [heartbeat(9), heartbeat(8, leaving=True)]  # this rank does not wait
    assert view_of(beats).departed() == []


@pytest.mark.parametrize("size", SIZES)
def test_waiting_rank_may_go_on_where_any_rank_works(size):
    beats = [heartbeat(waiting=True, idle=99.0)] * size
    assert not view_of(beats).may_go_on(3.0)
    for worker in {1, size // 2, size - 1}:
        works = [*beats[:worker], heartbeat(idle=2.9), *beats[worker + 1 :]]
        assert view_of(works).may_go_on(3.0)
        stuck = [*beats[:worker], heartbeat(idle=3.1), *beats[worker + 1 :]]
        assert not view_of(stuck).may_go_on(3.0)


def test_rank_that_works_may_go_on_whatever_the_others_do():
    beats = [heartbeat(idle=2.9), heartbeat(waiting=True, idle=99.0)]
    assert view_of(beats).may_go_on(3.0)
    assert not view_of(beats, idle=3.1).may_go_on(3.0)


def test_rank_does_not_count_its_own_old_heartbeat_as_work():
    beats = [heartbeat(), heartbeat(waiting=True)]
    view = view_of(beats, status=Status(waiting=True))
    assert not view.may_go_on(3.0)


@pytest.mark.parametrize("size", SIZES)
def test_rank_at_its_end_may_go_on_unless_all_at_work_spin(size):
    at_end = heartbeat(leaving=True)
    spins = heartbeat(idle=9.0, cpu_load=1.0)
    beats = [at_end] + [spins] * (size - 1)
    assert not view_of(beats).may_go_on(3.0)
    for other in (heartbeat(idle=9.0, cpu_load=0.0), heartbeat(idle=1.0)):
        assert view_of([*beats[:-1], other]).may_go_on(3.0)
    assert view_of([at_end] * size).may_go_on(3.0)


@pytest.mark.parametrize("size", SIZES)
def test_laggards_are_those_behind_or_those_at_work_or_all(size):
    waiting = heartbeat(9, waiting=True)
    beats = [waiting] * size
    assert len(view_of(beats).laggards()) == len(view_of(beats).peers)
    beats[-1] = heartbeat(9)
    assert [peer.rank for peer in view_of(beats).laggards()] == [size - 1]
    beats[-1] = heartbeat(8, waiting=True)
    assert [peer.rank for peer in view_of(beats).laggards()] == [size - 1]


def test_report_names_some_laggards_and_counts_all():
    beats = [heartbeat(9, waiting=True)] * 500 + [heartbeat(8, idle=1.0)] * 524
    lines = view_of(beats).report().splitlines()
    assert lines[0].startswith("  rank 500 on h: in update, exchange, step 3, for 1 s")
    named = len(lines) - 1
    assert 5 <= named <= 14
    assert lines[-1] == f"  and {524 - named} more ranks"


def test_report_at_the_end_counts_those_at_work():
    beats = [heartbeat(leaving=True)] * 24 + [heartbeat(leaving=False)] * 1000
    lines = view_of(beats).report().splitlines()
    assert lines[-1] == f"  and {1000 - len(lines) + 1} more ranks"
    assert view_of(beats[:25]).report().count("\n") == 0
