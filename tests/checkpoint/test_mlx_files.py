"""Plain MLX files, made of a checkpoint and loaded as one."""

from functools import partial
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import pytest
from mlx.utils import tree_flatten, tree_unflatten

import mlxdist
from mlxdist import CheckpointError, load_checkpoint, save_checkpoint
from mlxdist.checkpoint import mlx_files
from mlxdist.checkpoint.verify import list_checkpoints
from tests.support.checkpoints import assert_all_raise
from tests.support.examples import (
    Net,
    assert_same_bits,
    batch,
    distributed,
    loss,
    make,
)

pytestmark = pytest.mark.mpi


def test_consolidate_writes_files_that_mlx_and_load_checkpoint_read(
    world, shared_folder
):
    model = Net()
    optimizer = mlxdist.DistributedOptimizer(
        make("MultiOptimizer"), shard=True, world=world
    )
    optimizer.init(model)
    x, y = batch(0, 4)
    _, grads = nn.value_and_grad(model, loss)(model, x, y)
    optimizer.update(model, grads)
    save_checkpoint(shared_folder / "saves", 1, model, optimizer, {"a": mx.zeros(2)})
    target = shared_folder / "plain"
    if world.is_root:
        (checkpoint,) = list_checkpoints(shared_folder / "saves")
        mlx_files.consolidate(
            shared_folder / "saves", checkpoint.save, target, lambda nbytes: None
        )
        twin, single = Net(), make("MultiOptimizer")
        twin.load_weights(str(target / "model.safetensors"))
        assert_same_bits(twin.parameters(), model.parameters())
        state = mx.load(str(target / "optimizer.safetensors"))
    world.barrier()
    full = optimizer.gather_state()
    if world.is_root:
        assert_same_bits(state, dict(tree_flatten(full)))
        single.init(twin.trainable_parameters())
        single.state = tree_unflatten(list(state.items()))
        single.update(twin, grads)
    other = mlxdist.DistributedOptimizer(
        make("MultiOptimizer"), shard=True, world=world
    )
    restored = Net()
    load_checkpoint(target, restored, other)
    assert_same_bits(other.gather_state(), full)
    assert_same_bits(restored.parameters(), model.parameters())


class Halving(optim.Optimizer):
    """Keeps Python numbers: a count, and a rate that is an int at first."""

    def init_single(self, parameter, state):
        state["t"], state["rate"] = 0, 1

    def apply_single(self, gradient, parameter, state):
        state["t"] += 1
        state["rate"] *= 0.5
        return parameter - state["rate"] * gradient


@pytest.mark.parametrize("name", ["model", "optimizer"])
def test_plain_files_that_differ_between_hosts_are_refused(
    name, world, shared_folder, monkeypatch
):
    """Each rank has a folder of its own as its host's disk."""
    home = shared_folder / f"host-{world.rank}"
    home.mkdir()
    monkeypatch.chdir(home)
    tree, single = {"w": mx.ones((5, 3))}, optim.Adam(0.1)
    single.init(tree)
    mx.save_safetensors("model.safetensors", tree)
    mx.save_safetensors("optimizer.safetensors", dict(tree_flatten(single.state)))
    optimizer = distributed(world, optim.Adam(0.1), shard=True)
    load_checkpoint(".", tree, optimizer)
    if world.rank == world.size - 1:
        data = bytearray(Path(f"{name}.safetensors").read_bytes())
        data[-1] ^= 1
        Path(f"{name}.safetensors").write_bytes(data)
    if world.size == 1:
        load_checkpoint(".", tree, optimizer)
    else:
        load = partial(load_checkpoint, ".", tree, optimizer)
        assert_all_raise(world, CheckpointError, "not the same on all ranks", load)
        assert tree["w"].tolist() == [[1] * 3] * 5


@pytest.mark.parametrize("plain", [False, True])
def test_numbers_of_a_state_are_loaded_also_from_plain_files(
    plain, world, shared_folder
):
    tree = {"w": mx.ones((5, 3)), "b": mx.ones(2)}
    optimizer = distributed(world, Halving(), shard="tensors")
    optimizer.init(tree)
    tree = optimizer.apply_gradients(tree, tree)
    folder = shared_folder / "saves"
    save_checkpoint(folder, 1, tree, optimizer)
    if plain and world.is_root:
        (info,) = list_checkpoints(folder)
        mlx_files.consolidate(folder, info.save, shared_folder / "plain", print)
    world.barrier()
    resumed = distributed(world, Halving(), shard=False)
    load_checkpoint(shared_folder / "plain" if plain else folder, tree, resumed)
    assert resumed.state["w"] == resumed.state["b"] == {"t": 1, "rate": 0.5}
    assert type(resumed.state["w"]["t"]) is int
