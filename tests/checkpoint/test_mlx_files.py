"""Plain MLX files, made of a checkpoint and loaded as one."""

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten, tree_unflatten

import mlxdist
from mlxdist import load_checkpoint, save_checkpoint
from mlxdist.checkpoint import mlx_files
from mlxdist.checkpoint.verify import list_checkpoints
from tests.support.examples import Net, assert_same_bits, batch, loss, make

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
