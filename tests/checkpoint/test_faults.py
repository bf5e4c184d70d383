"""Every call to the system that a save or load makes fails once, on one rank."""

import gc
import json
import os
import threading
from collections import Counter

import mlx.core as mx
import pytest

from mlxdist import CheckpointError, load_checkpoint, save_checkpoint
from mlxdist.checkpoint import async_save
from tests.support.checkpoints import make_run, train, zeros
from tests.support.examples import assert_same_bits
from tests.support.os_faults import Border, faults

pytestmark = [
    pytest.mark.mpi,
    pytest.mark.filterwarnings("ignore:skipped a checkpoint"),
]

each_amount = pytest.mark.parametrize(
    "every", [False, pytest.param(True, marks=pytest.mark.long)], ids=["some", "every"]
)


def all_faults(world, monkeypatch, every, action):
    """Return the faults of an action on the last rank.

    Without `every` about eight of them, others for other numbers of ranks.
    """
    with Border().installed(monkeypatch) as border:
        action()
    ranks = world.control.all_gather_bytes(json.dumps(border.calls).encode())
    listed = list(faults(Counter(json.loads(ranks[-1])), every))
    return listed if every else listed[world.size % 4 :: 1 + len(listed) // 8]


def run_with_fault(world, monkeypatch, fault, action):
    """Run an action that fails on the last rank; return whether it failed on all."""
    name, index, error = fault
    failing = Border(name, index, error) if world.rank == world.size - 1 else Border()
    failed = b"no"
    with failing.installed(monkeypatch):
        try:
            action()
        except CheckpointError:
            failed = b"yes"
    outcomes = set(world.control.all_gather_bytes(failed))
    assert len(outcomes) == 1, fault
    return failed == b"yes"


def resources(closes=0):
    """Return how many files are open, but for so many, and mlxdist's threads."""
    gc.collect()
    threads = [t.name for t in threading.enumerate() if "mlxdist" in t.name]
    return len(os.listdir("/proc/self/fd")) - closes, sorted(threads)


@each_amount
def test_save_with_a_failing_call_fails_on_all_ranks_and_leaves_the_older(
    every, world, shared_folder, monkeypatch
):
    params, optimizer = make_run(world)
    save_checkpoint(shared_folder, 1, params, optimizer, keep=2)
    step = 1

    def save():
        save_checkpoint(shared_folder, step + 1, params, optimizer, keep=2)

    failures = 0
    listed = all_faults(world, monkeypatch, every, save)
    step, before = 2, resources()
    for fault in listed:
        world.barrier()
        failed = run_with_fault(world, monkeypatch, fault, save)
        failures += failed
        restored = zeros(params)
        loaded = load_checkpoint(shared_folder, restored)
        assert loaded.skipped == ()
        assert loaded.step in ((step, step + 1) if failed else (step + 1,)), fault
        assert_same_bits(restored, params)
        step = loaded.step
    assert failures > len(listed) / 4
    closes = sum(name == "close" for name, _, _ in listed)  # these stay open here
    assert world.rank < world.size - 1 or resources(closes) == before
    world.barrier()
    save()
    world.barrier()
    names = sorted(os.listdir(shared_folder))
    assert len(names) == 3, names  # two checkpoints and `latest`
    world.barrier()


@each_amount
def test_load_with_a_failing_call_fails_on_all_ranks_and_changes_nothing(
    every, world, shared_folder, monkeypatch
):
    params, optimizer = make_run(world)
    save_checkpoint(shared_folder, 1, params, optimizer, {"a": mx.arange(3)})
    other, resumed = make_run(world)
    other = train(other, resumed, world, range(2))
    before = dict(other), resumed.gather_state()

    def load():
        load_checkpoint(shared_folder, other, resumed)

    failures, listed = 0, all_faults(world, monkeypatch, every, load)
    open_before = resources()
    for fault in listed:
        other.update(before[0])
        resumed.load_state(before[1])
        mx.random.seed(5)
        key = mx.random.state[0].tolist()
        world.barrier()
        failed = run_with_fault(world, monkeypatch, fault, load)
        failures += failed
        assert_same_bits(other, before[0] if failed else params)
        state = resumed.gather_state()
        assert_same_bits(state, before[1] if failed else optimizer.gather_state())
        assert (mx.random.state[0].tolist() == key) == failed, fault
    assert failures > 3
    closes = sum(name == "close" for name, _, _ in listed)
    assert world.rank < world.size - 1 or resources(closes) == open_before


@pytest.mark.parametrize("name", ["start", "ftruncate", "fsync"])
def test_background_save_with_a_failing_call_fails_on_all_ranks(
    name, world, shared_folder, monkeypatch
):
    params, optimizer = make_run(world)
    save_checkpoint(shared_folder, 1, params, optimizer, background=True)
    async_save.wait_for_all()
    # The first thread to start is the save's own, without which it is made at once.
    error = RuntimeError("can't start") if name == "start" else OSError(28, "full")
    fault = (name, int(name == "start"), error)

    def save():
        save_checkpoint(shared_folder, 2, params, optimizer, background=True)
        async_save.wait_for_all()
        if problem := async_save.wait(world):
            raise CheckpointError(problem)

    assert run_with_fault(world, monkeypatch, fault, save)
    restored = zeros(params)
    assert load_checkpoint(shared_folder, restored).step == 1
