"""The folder of checkpoints: serials, and what a save removes of others' folders."""

import os
import shutil
import time

import msgspec
import pytest

from mlxdist import CheckpointError, load_checkpoint, save_checkpoint
from mlxdist.checkpoint import api, directory, mlx_files, run_history
from mlxdist.checkpoint import save as save_module
from mlxdist.checkpoint.directory import Run, Save
from mlxdist.checkpoint.manifest import NAME, to_bytes
from tests.support.checkpoints import (
    assert_all_raise,
    example_manifest,
    make_run,
    zeros,
)


def plant(folder, *saves, manifest=b"{}"):
    """Make folders with names of checkpoints, and files that are none."""
    for save in saves:
        (folder / save.name).mkdir()
        (folder / save.name / NAME).write_bytes(manifest)


def test_next_serial_is_above_all_that_a_run_can_have_made(tmp_path):
    assert directory.next_serial(tmp_path / "none") == 1
    plant(tmp_path, Save(7, 1), Save(999_999_999_999, 1), Save(10**9, 9))
    (tmp_path / "save-999999999998-step-00000001").symlink_to("nowhere")
    assert directory.next_serial(tmp_path) == 8
    valid = to_bytes(example_manifest())  # of step 7
    plant(tmp_path, Save(10**10, 7), manifest=valid)
    assert directory.next_serial(tmp_path) == 10**10 + 1
    plant(tmp_path, Save(999_999_999_999, 7), manifest=valid)
    with pytest.raises(ValueError, match="the last number of all: move it away"):
        directory.next_serial(tmp_path)


def test_list_saves_of_many_names_takes_linear_time(tmp_path, monkeypatch):
    names = [Save(serial, 1).name for serial in range(40_000)]
    monkeypatch.setattr(os, "listdir", lambda folder: names)
    start = time.process_time()
    assert len(directory.list_saves(tmp_path)) == 40_000
    assert time.process_time() - start < 5  # 0.2, and 24 if it were quadratic


def test_prune_keeps_checkpoints_and_not_what_is_none(tmp_path):
    valid = to_bytes(msgspec.structs.replace(example_manifest(), disks=(0, 1)))
    plant(tmp_path, *(Save(serial, 7) for serial in (1, 3, 5, 7, 9)), manifest=valid)
    plant(tmp_path, Save(2, 7), Save(4, 7), Save(8, 7))  # damaged
    (tmp_path / Save(1, 8).name).mkdir()  # no checkpoint of ours
    run = Run(1, Save(7, 7))
    good = directory.good_saves(tmp_path, run, most=2)
    assert good == [Save(5, 7), Save(3, 7)]
    directory.prune(tmp_path, run, keep=3, good=good, token="ab")
    left = [save.serial for save in directory.list_saves(tmp_path)]
    assert left == [9, 8, 7, 5, 4, 3, 1]  # valid are 3, 5 and 7
    directory.prune(tmp_path, Run(5, Save(7, 7)), keep=1, good=[], token="ab")
    assert [s.serial for s in directory.list_saves(tmp_path)] == [9, 8, 7, 4, 3, 1]


@pytest.mark.mpi
@pytest.mark.filterwarnings("ignore:skipped a checkpoint")
@pytest.mark.parametrize("shared", [True, False])
def test_prune_keeps_what_is_good_on_all_disks(
    shared, world, shared_folder, monkeypatch
):
    """The file of the last rank was cut, or the manifest on its host's own disk."""
    home = shared_folder / f"host-{0 if shared else world.rank}"
    home.mkdir(exist_ok=True)
    monkeypatch.chdir(home)
    params, optimizer = make_run(world)
    for step in (1, 2, 3, 4):
        path = save_checkpoint("saves", step, params, optimizer, keep=2)
        world.barrier()
        if world.rank == world.size - 1 and step > 1:
            name = f"rank-{world.rank:05}.safetensors" if shared else NAME
            os.truncate(path / name, 9)
        world.barrier()
    for folder in shared_folder.iterdir():
        saves = directory.list_saves(folder / "saves")
        assert [save.step for save in saves] == [4, 3, 2, 1]
    assert load_checkpoint("saves", params, optimizer).step == 1


@pytest.mark.mpi
@pytest.mark.filterwarnings("ignore:skipped a checkpoint")
def test_planted_folders_hide_no_save(world, shared_folder):
    params, optimizer = make_run(world)
    save_checkpoint(shared_folder, 1, params, optimizer)
    world.barrier()
    if world.is_root:
        planted = (999_999_999_999, 99_999), (5, 10**15), (99_999_999, 1)
        plant(shared_folder, *(Save(*pair) for pair in planted))
    world.barrier()
    for step in (2, 3, 4):
        path = save_checkpoint(shared_folder, step, params, optimizer, keep=2)
        loaded = load_checkpoint(shared_folder, zeros(params))
        assert (loaded.step, loaded.path) == (step, path)
        world.barrier()
    assert load_checkpoint(shared_folder, zeros(params), step=3).step == 3
    assert (shared_folder / Save(999_999_999_999, 99_999).name).is_dir()
    world.barrier()


@pytest.mark.mpi
def test_save_of_a_run_that_did_not_load_removes_no_checkpoint_of_another(
    world, shared_folder, monkeypatch
):
    """Unless it continues that run: then `keep` counts all."""

    def steps():
        world.barrier()
        return sorted(save.step for save in directory.list_saves(shared_folder))

    params, optimizer = make_run(world)
    for step in (100, 200):
        save_checkpoint(shared_folder, step, params, optimizer, keep=2)
    assert steps() == [100, 200]
    monkeypatch.setattr(run_history, "_first_serials", {})  # another process
    for step in (1, 2, 3):
        save_checkpoint(shared_folder, step, params, optimizer, keep=2)
    assert steps() == [2, 3, 100, 200]
    monkeypatch.setattr(run_history, "_first_serials", {})
    load_checkpoint(shared_folder, params, optimizer)
    save_checkpoint(shared_folder, 4, params, optimizer, keep=2)
    assert steps() == [3, 4]


@pytest.mark.mpi
def test_folder_that_can_not_be_listed_is_an_error_on_all_ranks(
    world, shared_folder, monkeypatch
):
    params, optimizer = make_run(world)
    save_checkpoint(shared_folder, 1, params, optimizer)
    world.barrier()

    def fail(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    if world.rank == world.size - 1:
        monkeypatch.setattr(os, "listdir", fail)
    for call in (
        lambda: save_checkpoint(shared_folder, 2, params, optimizer),
        lambda: load_checkpoint(shared_folder, params, optimizer),
    ):
        assert_all_raise(world, CheckpointError, "Permission denied", call)
    monkeypatch.undo()
    assert load_checkpoint(shared_folder, params, optimizer).step == 1


@pytest.mark.mpi
def test_manifest_has_the_time_of_rank_0(world, shared_folder, monkeypatch):
    """Hosts with disks of their own have to write the same manifest."""
    params, optimizer = make_run(world)
    clock = time.gmtime(86400 * world.rank)
    monkeypatch.setattr(save_module.time, "gmtime", lambda: clock)
    path = save_checkpoint(shared_folder, 1, params, optimizer)
    assert b'"1970-01-01T00:00:00Z"' in (path / NAME).read_bytes()
    world.barrier()


def test_consolidate_removes_what_a_killed_one_left(world, tmp_path):
    params, optimizer = make_run(world)
    save_checkpoint(tmp_path / "saves", 1, params, optimizer)
    (save,) = directory.list_saves(tmp_path / "saves")
    left = tmp_path / ".plain.consolidating-0123456789abcdef"
    users = [".plain.consolidating-mine", ".other.consolidating-0123456789abcdef"]
    for path in (left, *(tmp_path / name for name in users)):
        path.mkdir()
        (path / "model.safetensors").write_bytes(b"half")
    mlx_files.consolidate(
        tmp_path / "saves", save, tmp_path / "plain", lambda nbytes: None
    )
    assert sorted(os.listdir(tmp_path)) == sorted([*users, "plain", "saves"])
    shutil.rmtree(tmp_path / "plain")


@pytest.mark.mpi
def test_background_saver_that_can_not_be_made_leaves_nothing(
    world, shared_folder, monkeypatch
):
    params, optimizer = make_run(world)

    def fail(world):
        raise RuntimeError("no communicator")

    monkeypatch.setattr(api.async_save, "saver_of", fail)
    with pytest.raises(RuntimeError, match="no communicator"):
        save_checkpoint(shared_folder, 1, params, optimizer, background=True)
    assert os.listdir(shared_folder) == []
    world.barrier()
