"""Commits of a save whose files somebody removes meanwhile."""

import os
from functools import partial

import pytest

from mlxdist import CheckpointError, load_checkpoint, save_checkpoint
from mlxdist.checkpoint import commit, directory
from mlxdist.checkpoint.block_file import Writer
from tests.support.checkpoints import assert_all_raise, make_run

pytestmark = pytest.mark.mpi


class Removed(Writer):
    """A file that is removed once it is complete."""

    def __init__(self, path):
        super().__init__(path)
        self._path = path

    def finish(self):
        digests = super().finish()
        self._path.unlink()
        return digests


class Swept(Writer):
    """A file that another job takes for what a killed save left."""

    def __init__(self, path):
        super().__init__(path)
        directory.sweep(path.parent.parent, "")


def test_checkpoint_with_a_removed_file_is_not_committed(
    world, shared_folder, monkeypatch
):
    params, optimizer = make_run(world)
    save = partial(save_checkpoint, shared_folder, keep=1)
    save(step=1, model=params, optimizer=optimizer)
    if world.rank == world.size - 1:
        monkeypatch.setattr(commit, "Writer", Removed)
    call = partial(save, step=2, model=params, optimizer=optimizer)
    match = "step 2 was not saved.*(\n.*)*safetensors: No such file"
    assert_all_raise(world, CheckpointError, match, call)
    assert load_checkpoint(shared_folder, params, optimizer).step == 1
    assert len(os.listdir(shared_folder)) == 2


def test_save_that_another_job_tidies_away_says_that_the_folder_is_in_use(
    world, shared_folder, monkeypatch
):
    params, optimizer = make_run(world)
    monkeypatch.setattr(commit, "Writer", Swept)
    call = partial(save_checkpoint, shared_folder, 1, params, optimizer)
    with pytest.raises(CheckpointError, match=r"in use|No such file"):
        call()
    world.barrier()
    assert os.listdir(shared_folder) == []
