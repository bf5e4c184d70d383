"""Background saves: a thread writes while training goes on."""

import os
import sys
import threading
import time

import numpy as np
import pytest

from mlxdist import MismatchError, load_checkpoint, save_checkpoint
from mlxdist.checkpoint import async_save, directory
from mlxdist.checkpoint.block_file import THREADS, Writer
from tests.support.checkpoints import make_run, train, zeros
from tests.support.examples import assert_same_bits


@pytest.mark.mpi
def test_background_save_has_the_state_at_the_call(world, shared_folder):
    params, optimizer = make_run(world)
    for step in range(4):
        params = train(params, optimizer, world, [step])
        wanted, state = params, optimizer.gather_state()
        save_checkpoint(shared_folder, step, params, optimizer, background=True, keep=2)
    params = train(params, optimizer, world, range(4, 8))
    save_checkpoint(shared_folder, 8, params, optimizer)  # waits for the save before
    restored, other = make_run(world)
    load_checkpoint(shared_folder, restored, other, step=3)
    assert_same_bits(restored, wanted)
    assert_same_bits(other.gather_state(), state)
    world.barrier()


@pytest.mark.mpi
def test_background_save_has_the_arrays_of_the_user_at_the_call(
    world, shared_folder, monkeypatch
):
    params, optimizer = make_run(world)
    counts, changed = np.arange(5), threading.Event()
    write = Writer.write

    def late_write(*arguments):
        changed.wait()
        write(*arguments)

    monkeypatch.setattr(Writer, "write", late_write)
    extra = {"counts": counts}
    save_checkpoint(shared_folder, 1, params, optimizer, extra, background=True)
    counts[:] = -1
    changed.set()
    loaded = load_checkpoint(shared_folder, params, optimizer)
    assert loaded.extra["counts"].tolist() == [0, 1, 2, 3, 4]


def delay_commits(monkeypatch):
    """Make each save from now on commit 0.2 s later."""
    commit = directory.commit

    def late_commit(*arguments):
        time.sleep(0.2)
        return commit(*arguments)

    monkeypatch.setattr(directory, "commit", late_commit)


@pytest.mark.mpi
@pytest.mark.parametrize("alone", [False, True])
def test_load_waits_for_a_background_save(alone, world, shared_folder, monkeypatch):
    """Also for that of another world, and to load a model without an optimizer."""
    part = world.split(world.rank) if alone else world
    folder = shared_folder / str(world.rank * alone)
    params, optimizer = make_run(part)
    save_checkpoint(folder, 1, params, optimizer)
    params = train(params, optimizer, part, [1])
    delay_commits(monkeypatch)
    save_checkpoint(folder, 2, params, optimizer, background=True)
    restored = zeros(params)
    shared = shared_folder / "0"
    assert load_checkpoint(shared, restored, None if alone else optimizer).step == 2
    assert_same_bits(restored, params)
    world.barrier()


@pytest.mark.mpi(min_size=2)
def test_close_of_a_world_waits_for_its_background_save(
    world, shared_folder, monkeypatch
):
    part = world.split(int(world.rank > 0))
    folder = shared_folder / str(world.rank > 0)
    params, optimizer = make_run(part)
    delay_commits(monkeypatch)
    save_checkpoint(folder, 2, params, optimizer, background=True)
    part.close()
    assert [save.step for save in directory.list_saves(folder)] == [2]
    world.barrier()


@pytest.mark.mpi
def test_background_save_is_made_where_no_thread_can_start(
    world, shared_folder, monkeypatch
):
    params, optimizer = make_run(world)
    start = threading.Thread.start

    def failing_start(thread):
        if thread.name == "mlxdist checkpoint":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", failing_start)
    save_checkpoint(shared_folder, 2, params, optimizer, background=True)
    assert load_checkpoint(shared_folder, params, optimizer).step == 2


@pytest.mark.mpi
def test_background_save_failure_is_raised_by_the_next_step_or_save(
    world, shared_folder, monkeypatch
):
    params, optimizer = make_run(world)
    save_checkpoint(shared_folder, 1, params, optimizer)

    def failing_commit(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(directory, "commit", failing_commit)
    save_checkpoint(shared_folder, 2, params, optimizer, background=True)
    async_save.saver_of(world).wait()
    world.barrier()
    with pytest.raises(MismatchError, match="No space left"):
        train(params, optimizer, world, [0])
    train(params, optimizer, world, [0])
    save_checkpoint(shared_folder, 3, params, optimizer, background=True)
    with pytest.raises(MismatchError, match=r"(?s)step 3 was not saved.*No space"):
        save_checkpoint(shared_folder, 4, params, optimizer)
    monkeypatch.undo()
    assert [path.name for path in shared_folder.glob("*save*")] == [
        "save-00001-step-00000001"
    ]
    save_checkpoint(shared_folder, 4, params, optimizer)
    assert load_checkpoint(shared_folder, params, optimizer).step == 4


@pytest.mark.skipif(sys.platform != "linux", reason="priorities of threads")
def test_lower_priority_holds_for_the_writer_threads(tmp_path):
    before, priorities = os.getpriority(os.PRIO_PROCESS, 0), []

    def write():
        async_save.lower_priority()
        with Writer(tmp_path / "file") as writer:
            writer.write(b"some")
            threads = [t for t in threading.enumerate() if t.name == "mlxdist writer"]
            for thread in (threading.current_thread(), *threads):
                priorities.append(os.getpriority(os.PRIO_PROCESS, thread.native_id))
            writer.finish()

    thread = threading.Thread(target=write)
    thread.start()
    thread.join()
    assert priorities == [min(before + 10, 19)] * (1 + THREADS)
    assert os.getpriority(os.PRIO_PROCESS, 0) == before
