"""Checkpoints on the hosts' own disks: a rank reads for those that lack a file."""

import json
import os

import mlx.core as mx
import numpy as np
import pytest

from mlxdist import load_checkpoint, save_checkpoint
from mlxdist.checkpoint.durable import DamagedError
from mlxdist.checkpoint.manifest import SavedFile
from mlxdist.checkpoint.reader import Contents, FileReaders
from tests.support.checkpoints import make_run, train, zeros
from tests.support.examples import assert_same_bits


def test_readers_of_many_files_keep_few_open_and_see_changes(tmp_path):
    """1,500 ranks saved; a process may have 1,024 files open."""
    names = [f"{number}.safetensors" for number in range(100)]
    for number, name in enumerate(names):
        (tmp_path / name).write_bytes(bytes([number] * 8))
    contents = Contents(tmp_path, tuple(SavedFile(name, 8, ()) for name in names), ())
    before = len(os.listdir("/dev/fd"))
    data = np.empty(8, np.uint8)
    with FileReaders(contents) as readers:
        for _ in range(2):
            for number in range(100):
                readers[number].read(0, data)
                assert data.tolist() == [number] * 8
            assert len(os.listdir("/dev/fd")) == before + 64
        readers.check_unchanged()
        (tmp_path / names[0]).write_bytes(bytes(9))
        with pytest.raises(DamagedError, match=r"0\.safetensors was modified"):
            readers.check_unchanged()
    assert len(os.listdir("/dev/fd")) == before


@pytest.mark.mpi
def test_save_and_load_on_separate_disks(world, shared_folder, monkeypatch):
    """Each rank has a folder of its own as its host's disk."""
    params, optimizer = make_run(world)
    params = train(params, optimizer, world, range(2))
    home = shared_folder / f"host-{world.rank}"
    home.mkdir()
    monkeypatch.chdir(home)
    path = save_checkpoint("here", 1, params, optimizer, {"a": mx.arange(3)})
    path = save_checkpoint("here", 2, params, optimizer, {"a": mx.arange(3)}, keep=1)
    assert [file.name for file in path.glob("*.safetensors")] == [
        f"rank-{world.rank:05}.safetensors"
    ]
    assert sorted(os.listdir("here")) == sorted([path.name, "latest"])
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["disks"] == list(range(world.size))
    tree, other = make_run(world, shard="tensors")
    loaded = load_checkpoint("here", zeros(tree), other)
    assert loaded.extra["a"].tolist() == [0, 1, 2]
    tree = zeros(tree)
    load_checkpoint("here", tree, other)
    assert_same_bits(tree, params)
    assert_same_bits(other.gather_state(), optimizer.gather_state())


@pytest.mark.mpi
def test_load_sends_files_to_a_host_that_lacks_them(world, shared_folder, monkeypatch):
    params, optimizer = make_run(world)
    params = train(params, optimizer, world, range(2))
    home = shared_folder / ("there" if world.rank < world.size - 1 else "new")
    home.mkdir(exist_ok=True)
    if world.size == 1:
        home = shared_folder
    monkeypatch.chdir(shared_folder)
    save_checkpoint("there/saves", 1, params, optimizer)
    monkeypatch.chdir(home)
    tree, other = make_run(world, shard=False)
    tree = zeros(tree)
    folder = "saves" if world.size > 1 else "there/saves"
    load_checkpoint(folder, tree, other)
    assert_same_bits(tree, params)
    assert_same_bits(other.gather_state(), optimizer.gather_state())
