"""Checkpoints on disks of the ranks' own, and in plain MLX."""

import json
import os

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten, tree_unflatten

import mlxdist
from mlxdist import load_checkpoint, save_checkpoint
from mlxdist.checkpoint import mlx_files as plain
from mlxdist.checkpoint import verify as inspection
from tests.support.checkpoints import make_run, train, zeros
from tests.support.examples import Net, assert_same_bits, batch, loss, make

pytestmark = pytest.mark.mpi


def test_hosts_with_disks_of_their_own(world, shared_folder, monkeypatch):
    """Each rank in a folder that no other rank looks into."""
    own, ours = make_run(world)
    own = train(own, ours, world, range(2))
    home = shared_folder / f"host-{world.rank}"
    home.mkdir()
    monkeypatch.chdir(home)
    path = save_checkpoint("here", 1, own, ours, {"a": mx.arange(3)})
    path = save_checkpoint("here", 2, own, ours, {"a": mx.arange(3)}, keep=1)
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
    assert_same_bits(tree, own)
    assert_same_bits(other.gather_state(), ours.gather_state())


def test_a_new_host_gets_what_it_does_not_have(world, shared_folder, monkeypatch):
    own, ours = make_run(world)
    own = train(own, ours, world, range(2))
    home = shared_folder / ("there" if world.rank < world.size - 1 else "new")
    home.mkdir(exist_ok=True)
    if world.size == 1:
        home = shared_folder
    monkeypatch.chdir(shared_folder)
    save_checkpoint("there/saves", 1, own, ours)
    monkeypatch.chdir(home)
    tree, other = make_run(world, shard=False)
    tree = zeros(tree)
    folder = "saves" if world.size > 1 else "there/saves"
    load_checkpoint(folder, tree, other)
    assert_same_bits(tree, own)
    assert_same_bits(other.gather_state(), ours.gather_state())


def test_into_plain_mlx_and_back(world, shared_folder):
    model = Net()
    ours = mlxdist.DistributedOptimizer(make("MultiOptimizer"), shard=True, world=world)
    ours.init(model)
    x, y = batch(0, 4)
    _, grads = nn.value_and_grad(model, loss)(model, x, y)
    ours.update(model, grads)
    save_checkpoint(shared_folder / "saves", 1, model, ours, {"a": mx.zeros(2)})
    target = shared_folder / "plain"
    if world.is_root:
        (found,) = inspection.look(shared_folder / "saves")
        plain.consolidate(shared_folder / "saves", found.save, target, lambda n: None)
        twin, single = Net(), make("MultiOptimizer")
        twin.load_weights(str(target / "model.safetensors"))
        assert_same_bits(twin.parameters(), model.parameters())
        state = mx.load(str(target / "optimizer.safetensors"))
    world.barrier()
    full = ours.gather_state()
    if world.is_root:
        assert_same_bits(state, dict(tree_flatten(full)))
        single.init(twin.trainable_parameters())
        single.state = tree_unflatten(list(state.items()))
        single.update(twin, grads)
    other = mlxdist.DistributedOptimizer(
        make("MultiOptimizer"), shard=True, world=world
    )
    again = Net()
    load_checkpoint(target, again, other)
    assert_same_bits(other.gather_state(), full)
    assert_same_bits(again.parameters(), model.parameters())
