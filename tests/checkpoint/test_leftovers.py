"""Saves and loads that fail leave no descriptor, map, thread or file."""

import gc
import mmap
import os
import sys
import threading
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlxdist import CheckpointError, MismatchError, load_checkpoint, save_checkpoint
from mlxdist.checkpoint import api, async_save, commit, directory, user_data
from tests.support.checkpoints import make_run, zeros

pytestmark = pytest.mark.mpi
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self")


@pytest.fixture(scope="module", autouse=True)
def frozen_heap():
    """`gc.collect` looks at the objects of these tests only, which is much faster."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def no_space(*arguments, **options):
    raise OSError(28, "No space left on device")


def resources():
    """Return the open files, the shared maps and the threads of this process."""
    gc.collect()
    files = []
    for number in os.listdir("/proc/self/fd"):
        target = f"/proc/self/fd/{number}"
        files.append(os.readlink(target) if os.path.lexists(target) else "")
    maps = Path("/proc/self/maps").read_text().count("/dev/zero")
    threads = sorted(t.name for t in threading.enumerate() if "mlxdist" in t.name)
    mine = sorted(name for name in files if "save" in name)
    return len(mine), maps, threads


def listing(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def on_last_rank(world, failing, working):
    return failing if world.rank == world.size - 1 else working


def fail_to_write(world, patch):
    patch.setattr(os, "pwrite", on_last_rank(world, no_space, os.pwrite))


def fail_to_flush(world, patch):
    patch.setattr(os, "fsync", on_last_rank(world, no_space, os.fsync))


def fail_to_map(world, patch):
    patch.setattr(mmap, "mmap", on_last_rank(world, no_space, mmap.mmap))


def fail_to_create(world, patch):
    os_open = os.open

    def fail(path, flags, *arguments, **options):
        if flags & os.O_CREAT:
            no_space()
        return os_open(path, flags, *arguments, **options)

    patch.setattr(os, "open", on_last_rank(world, fail, os_open))


def fail_to_commit(world, patch):
    patch.setattr(directory, "commit", no_space)


def fail_after_the_rename(world, patch):
    patch.setattr(commit, "flush_folder", no_space)


def fail_to_copy(world, patch):
    class Uncopyable(np.ndarray):
        copy = no_space

    def data(parts, snapshot):
        yield np.zeros(8, np.uint8).view(Uncopyable)

    patch.setattr(api, "data_of_parts", on_last_rank(world, data, api.data_of_parts))


def save_and_step(folder, params, optimizer, background):
    save_checkpoint(folder, 2, params, optimizer, background=background)
    async_save.wait_for_all()
    optimizer.apply_gradients(params, params)  # raises what the thread met


@linux_only
@pytest.mark.parametrize(
    ("fail", "background"),
    [
        (fail_to_create, True),
        (fail_to_map, False),
        (fail_to_copy, True),
        (fail_to_write, True),
        (fail_to_flush, False),
        (fail_to_commit, True),
        (fail_after_the_rename, False),
    ],
)
def test_save_that_fails_leaves_nothing(
    fail, background, world, shared_folder, monkeypatch
):
    params, optimizer = make_run(world)
    save_checkpoint(shared_folder, 1, params, optimizer, background=background)
    async_save.wait_for_all()
    world.barrier()
    before, files = resources(), listing(shared_folder)
    with monkeypatch.context() as patch:
        fail(world, patch)
        with pytest.raises((CheckpointError, MismatchError), match="No space left"):
            save_and_step(shared_folder, params, optimizer, background)
    world.barrier()
    assert listing(shared_folder) == files
    assert resources() == before
    world.barrier()
    save_checkpoint(shared_folder, 2, params, optimizer)
    assert load_checkpoint(shared_folder, zeros(params)).step == 2


def damage(path, world):
    world.barrier()
    if world.is_root:
        file = next(path.glob("rank-*"))
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
    world.barrier()


def fail_to_read(world, patch):
    patch.setattr(os, "preadv", on_last_rank(world, no_space, os.preadv))


def fail_to_decode(world, patch):
    def refuse(value, arrays):
        raise ValueError("No space left in extra")

    patch.setattr(user_data, "decode", refuse)


def interrupt(world, patch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    patch.setattr(user_data, "decode", interrupted)


READ_FAILURES = {"read": fail_to_read, "decode": fail_to_decode, "interrupt": interrupt}


@linux_only
@pytest.mark.parametrize("problem", ["damage", "model", *READ_FAILURES])
def test_load_that_fails_leaves_nothing(problem, world, shared_folder, monkeypatch):
    params, optimizer = make_run(world)
    path = save_checkpoint(shared_folder, 1, params, optimizer, {"a": mx.zeros(3)})
    if problem == "damage":
        damage(path, world)
    before, files = resources(), listing(shared_folder)
    model = {"other": mx.zeros(3)} if problem == "model" else zeros(params)
    with monkeypatch.context() as patch:
        if problem in READ_FAILURES:
            READ_FAILURES[problem](world, patch)
        with pytest.raises((CheckpointError, KeyboardInterrupt)):
            load_checkpoint(shared_folder, model)
    assert resources() == before
    assert listing(shared_folder) == files
    world.barrier()


def test_save_removes_what_killed_saves_left_and_nothing_else(world, shared_folder):
    params, optimizer = make_run(world)
    token = "0123456789abcdef"
    stale = [f".save-00004-step-00000007.{a}-{token}" for a in ("saving", "removing")]
    users = [
        ".latest.notes",
        f".latest.saving-{token}.txt",
        f".other.saving-{token}",
        f".save-mine.saving-{token}",
        "save-mine",
        "notes.txt",
    ]
    if world.is_root:
        for name in stale:
            (shared_folder / name).mkdir()
            (shared_folder / name / "rank-00000.safetensors").write_bytes(b"half")
        (shared_folder / f".latest.saving-{token}").write_bytes(b"half")
        for name in users:
            (shared_folder / name).write_bytes(b"mine")
    world.barrier()
    path = save_checkpoint(shared_folder, 1, params, optimizer)
    assert sorted(os.listdir(shared_folder)) == sorted([*users, "latest", path.name])
    world.barrier()


def test_failed_save_leaves_a_checkpoint_of_its_name(world, shared_folder, monkeypatch):
    """Another run that saves into the same folder may have taken the name."""
    params, optimizer = make_run(world)
    original = directory.commit

    def commit_second(folder, save, token, manifest):
        (folder / save.name).mkdir()
        (folder / save.name / "theirs").write_bytes(b"whole")
        original(folder, save, token, manifest)

    monkeypatch.setattr(directory, "commit", commit_second)
    with pytest.raises(CheckpointError, match="was not saved"):
        save_checkpoint(shared_folder, 1, params, optimizer)
    world.barrier()
    (file,) = (path for path in shared_folder.rglob("*") if path.is_file())
    assert file.read_bytes() == b"whole"
    assert len(listing(shared_folder)) == 2
    world.barrier()
