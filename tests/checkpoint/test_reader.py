"""Checkpoints on the hosts' own disks: a rank reads for those that lack a file."""

import json
import os

import mlx.core as mx
import pytest

from mlxdist import load_checkpoint, save_checkpoint
from tests.support.checkpoints import make_run, train, zeros
from tests.support.examples import assert_same_bits

pytestmark = pytest.mark.mpi


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
