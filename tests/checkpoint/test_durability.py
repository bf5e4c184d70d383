"""Saves that the machine's crash cuts short: after each operation, what is left loads.

A killed process loses nothing of what it wrote; a crash of the machine loses what was
not flushed. So the operations of saves are recorded, and each beginning of them is
replayed to a folder without what was not flushed.
"""

import os
import re
from pathlib import Path

import mlx.core as mx
import mlx.optimizers as optim
import pytest

import mlxdist
from mlxdist import load_checkpoint, save_checkpoint
from mlxdist.checkpoint import directory, durable
from tests.support.crashes import Disk, recorded

SAVES = 3


def record_saves(root, patch):
    """Save with `keep=1`; return the operations, and how many there were by each."""
    root.mkdir()
    optimizer = mlxdist.DistributedOptimizer(optim.SGD(1.0))
    params = {"w": mx.zeros(5)}
    optimizer.init(params)
    ends = []
    with recorded(root, patch) as operations:
        for step in range(1, SAVES + 1):
            params["w"] = mx.full(5, float(step))
            save_checkpoint(root, step, params, optimizer, keep=1)
            ends.append(len(operations))
    return operations, ends


def loaded_step(folder):
    """Load the newest checkpoint, of which there is no damaged one; return its step."""
    params = {"w": mx.zeros(5)}
    loaded = load_checkpoint(folder, params, missing_ok=True)
    if loaded is None:
        return 0
    assert loaded.skipped == ()
    assert params["w"].tolist() == [loaded.step] * 5
    return loaded.step


def check_all_crashes(tmp_path, patch):
    """Assert that after each crash a save that had returned is there, or the next."""
    operations, ends = record_saves(tmp_path / "saves", patch)
    disk, states = Disk(), 0
    for index, operation in enumerate(operations, 1):
        disk.apply(*operation)
        done = sum(end <= index for end in ends)
        for keeps_names in (False, True):
            folder = tmp_path / f"{index}-{keeps_names}"
            disk.after_crash(folder, keeps_names)
            step = loaded_step(folder)
            assert step in (done, done + 1), (operation[:2], keeps_names)
            states += 1
    return states


def test_crash_after_any_operation_leaves_the_last_save_or_the_next(
    tmp_path, monkeypatch
):
    assert check_all_crashes(tmp_path, monkeypatch) > 60


def no_flush_of_files(patch):
    flush = durable.flush
    patch.setattr("mlxdist.checkpoint.block_file.flush", lambda file: None)
    return flush


def no_flush_of_the_manifest(patch):
    flush = durable.flush
    is_folder = os.path.isdir
    patch.setattr(durable, "flush", lambda f: flush(f) if is_folder(f) else None)
    patch.setattr("mlxdist.checkpoint.block_file.flush", flush)


def no_flush_of_the_new_folder(patch):
    flush = durable.flush_folder
    patch.setattr(
        durable,
        "flush_folder",
        lambda path: None if path.name.startswith(".") else flush(path),
    )


def no_flush_after_the_rename(patch):
    patch.setattr("mlxdist.checkpoint.commit.flush_folder", lambda path: None)
    patch.setattr(durable, "flush_folder", lambda path: None)


def removal_before_the_rename(patch):
    commit = directory.commit

    def late_commit(folder, save, token, manifest):
        directory.prune(folder, directory.Run(0, save), 1, (), token)
        for older in directory.list_saves(folder):
            directory.remove(folder, older, token)
        commit(folder, save, token, manifest)

    patch.setattr(directory, "commit", late_commit)


@pytest.mark.parametrize(
    "mistake",
    [
        no_flush_of_files,
        no_flush_of_the_manifest,
        no_flush_of_the_new_folder,
        no_flush_after_the_rename,
        removal_before_the_rename,
    ],
)
def test_crashes_find_a_save_that_does_not_flush(mistake, tmp_path, monkeypatch):
    """The other test proves nothing if this fails."""
    mistake(monkeypatch)
    with pytest.raises((AssertionError, mlxdist.CheckpointError)):
        check_all_crashes(tmp_path, monkeypatch)


def test_save_flushes_each_file_and_folder_in_order(tmp_path, monkeypatch):
    """Also where a later flush of the same folder would do, as that after `latest`."""
    operations, ends = record_saves(tmp_path / "saves", monkeypatch)
    new, old = "save-00002-step-00000002", "save-00001-step-00000001"
    saving, removing = f".{new}.saving", f".{old}.removing"
    assert [
        [kind, *(path.as_posix() for path in paths if isinstance(path, Path))]
        for kind, *paths in map(without_tokens, operations[ends[0] : ends[1]])
    ] == [
        ["mkdir", saving],
        ["create", f"{saving}/rank-00000.safetensors"],
        ["flush", f"{saving}/rank-00000.safetensors"],
        ["create", f"{saving}/.manifest.json.saving"],
        ["flush", f"{saving}/.manifest.json.saving"],
        ["rename", f"{saving}/.manifest.json.saving", f"{saving}/manifest.json"],
        ["flush", saving],
        ["rename", saving, new],
        ["flush", "."],
        ["create", ".latest.saving"],
        ["flush", ".latest.saving"],
        ["rename", ".latest.saving", "latest"],
        ["flush", "."],
        ["rename", old, removing],
        ["flush", "."],
        ["unlink", f"{removing}/manifest.json"],
        ["unlink", f"{removing}/rank-00000.safetensors"],
        ["rmdir", removing],
    ]


def without_tokens(operation):
    """Return an operation without the random ends of names."""
    return [
        Path(re.sub(r"-[0-9a-f]{16}(?=/|$)", "", str(value)))
        if isinstance(value, Path)
        else value
        for value in operation
    ]


def test_first_save_flushes_the_names_of_folders_that_it_makes(tmp_path, monkeypatch):
    optimizer = mlxdist.DistributedOptimizer(optim.SGD(1.0))
    params = {"w": mx.zeros(5)}
    optimizer.init(params)
    with recorded(tmp_path, monkeypatch) as operations:
        save_checkpoint(tmp_path / "a" / "b", 1, params, optimizer)
    steps = [(kind, str(path)) for kind, path, *_ in operations]
    made = [("mkdir", "a"), ("mkdir", "a/b"), ("flush", "a"), ("flush", ".")]
    assert [step for step in steps if step in made][:4] == made
