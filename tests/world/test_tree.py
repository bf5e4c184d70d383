"""The way of the heartbeats, simulated for up to 1,024 ranks."""

import pytest

from mlxdist.world.digest import MAX_BYTES
from mlxdist.world.stall import View
from mlxdist.world.tree import FAN_OUT, children_of, parent_of
from tests.support.heartbeats import SimulatedJob, heartbeat

SIZES = [1, 2, 3, 4, 32, 33, 34, 1024]


def view(job, rank):
    return View(rank, "h", job.beat(rank).status, 0.0, job.job(rank))


@pytest.mark.parametrize("size", [*SIZES, 1057, 1058, 40_000])
def test_tree_reaches_each_rank_once(size):
    children = [child for rank in range(size) for child in children_of(rank, size)]
    assert children == list(range(1, size))
    for rank in {0, 1, size // 2, size - 1} & set(range(size)):
        assert all(parent_of(child) == rank for child in children_of(rank, size))
    assert parent_of(0) is None


@pytest.mark.parametrize("size", SIZES)
def test_tick_sends_two_messages_for_each_rank_but_one(size):
    job = SimulatedJob(size, lambda rank: heartbeat())
    job.tick()
    job.tick()
    assert job.sent.total() == job.received.total() == 2 * (size - 1)
    most = max((*job.sent.values(), *job.received.values()), default=0)
    assert most == (FAN_OUT + 1 if size == 1024 else min(size - 1, FAN_OUT))
    assert job.largest <= MAX_BYTES


@pytest.mark.parametrize("size", SIZES[1:])
def test_heartbeat_reaches_all_ranks_within_four_ticks(size):
    """The last rank falls behind, and each other rank sees it behind."""
    behind = size - 1
    job = SimulatedJob(size, lambda rank: heartbeat(9 - 8 * (rank == behind)))
    ticks = 2 if size <= FAN_OUT + 1 else 4
    for _ in range(ticks):
        job.tick()
    for rank in range(size - 1):
        digest = job.job(rank)
        assert (digest.ranks, digest.behind) == (size, 1)
        assert [peer.rank for peer in view(job, rank).laggards()] == [behind]


@pytest.mark.parametrize("size", SIZES[1:])
def test_stopped_rank_is_silent_to_all_others(size):
    stopped = size - 1
    job = SimulatedJob(size, lambda rank: heartbeat(waiting=True))
    job.run(2)
    job.run(4, stopped=[stopped])
    for rank in range(size - 1):
        assert [p.rank for p in view(job, rank).silent(1.9)] == [stopped]
        assert not view(job, rank).silent(4.1)


@pytest.mark.parametrize("size", SIZES[1:])
def test_stopped_rank_0_is_silent_to_all_others(size):
    job = SimulatedJob(size, lambda rank: heartbeat(waiting=True))
    job.run(2)
    job.run(4, stopped=[0])
    for rank in range(1, size):
        assert [p.rank for p in view(job, rank).silent(1.9)] == [0]


def test_stopped_rank_between_is_silent_and_those_below_it_are_not():
    job = SimulatedJob(1024, lambda rank: heartbeat(waiting=True))
    job.run(2)
    job.run(4, stopped=[2])
    for rank in {0, 1, 3, 32, 700, 1023, *children_of(2, 1024)}:
        assert [p.rank for p in view(job, rank).silent(1.9)] == [2], rank


def test_ranks_of_a_lost_host_are_silent_to_some_rank():
    """Ranks 0 to 39 are gone, and with them the way between all others."""
    job = SimulatedJob(1024, lambda rank: heartbeat(waiting=True))
    job.run(2)
    job.run(4, stopped=range(40))
    found = {p.rank for r in range(40, 1024) for p in view(job, r).silent(1.9)}
    assert {1, 2, 31} <= found <= set(range(40))


def test_rank_that_never_sent_is_silent_from_the_start():
    job = SimulatedJob(4, lambda rank: heartbeat(waiting=True))
    job.run(4, stopped=[2])
    assert [p.rank for p in view(job, 3).silent(3.0)] == [2]
    assert "rank 2 on an unknown host" in view(job, 3).describe(view(job, 3).peers)


def test_forgive_discounts_the_time_of_this_rank():
    job = SimulatedJob(3, lambda rank: heartbeat(waiting=True))
    job.run(1)
    job.now += 9
    assert [p.rank for p in view(job, 1).silent(3.0)] == [0]
    job.nodes[1].forgive(9)
    assert not view(job, 1).silent(0.5)


@pytest.mark.parametrize("worker", [0, 1, 1023])
def test_one_rank_that_works_keeps_the_job_going(worker):
    job = SimulatedJob(1024, lambda rank: heartbeat(waiting=rank != worker))
    job.run(1)
    assert all(view(job, rank).may_go_on(1.5) for rank in range(1024))


def test_no_rank_that_works_ends_the_job_whichever_asks():
    job = SimulatedJob(1024, lambda rank: heartbeat(waiting=True))
    job.run(1)
    assert not any(view(job, rank).may_go_on(1.5) for rank in range(1024))


def test_rank_that_worked_until_it_was_stopped_works_no_longer():
    """Its last heartbeat grows old on its way, too."""
    job = SimulatedJob(34, lambda rank: heartbeat(waiting=rank != 33))
    job.run(1)
    assert all(view(job, rank).may_go_on(1.9) for rank in range(34))
    job.run(4, stopped=[33])
    assert not any(view(job, rank).may_go_on(1.9) for rank in range(33))
