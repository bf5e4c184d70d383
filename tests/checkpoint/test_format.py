"""The format of checkpoints: what version 0.1.0 saved loads, and is still written.

`data/version-0.1.0` is a checkpoint that mlxdist 0.1.0 saved on 2 ranks.
"""

import json
import os
from pathlib import Path

import mlx.core as mx
import mlx.optimizers as optim
import msgspec
import pytest

import mlxdist
from mlxdist import CheckpointError, load_checkpoint, save_checkpoint
from mlxdist.checkpoint import directory
from mlxdist.checkpoint.manifest import NAME, to_bytes
from tests.support.checkpoints import assert_all_raise, make_run, zeros
from tests.support.examples import assert_same_bits, each_shard, full_like

pytestmark = pytest.mark.mpi
DATA = Path(__file__).parent / "data" / "version-0.1.0"
EXTRA = {"losses": (2.5, float("inf")), "table": mx.arange(3)}


def train_as_saved(world, shard="elements"):
    """Take the steps of the saved run, which are exact in binary."""
    tree = {
        "layers": [
            {"weight": mx.arange(12.0).reshape(3, 4)},
            {"weight": mx.ones(5, mx.bfloat16)},
        ]
    }
    optimizer = mlxdist.DistributedOptimizer(
        optim.SGD(0.5, momentum=0.5),
        shard=shard,
        master_dtype=mx.float32,
        ema_decay=0.5,
        world=world,
    )
    optimizer.init(tree)
    for _ in range(2):
        tree = optimizer.apply_gradients(full_like(tree, 1.0), tree)
    return tree, optimizer


@each_shard
def test_load_reads_a_checkpoint_of_version_0_1_0(shard, world):
    tree, optimizer = train_as_saved(world, shard)
    state = optimizer.gather_state()
    sampler = mlxdist.ShardedSampler(20, world=world, batch_size=2)
    optimizer.apply_gradients(full_like(tree, 1.0), tree)
    restored = zeros(tree)
    loaded = load_checkpoint(DATA, restored, optimizer, sampler=sampler)
    assert loaded.step == 2
    assert loaded.extra["losses"] == EXTRA["losses"]
    assert loaded.extra["table"].tolist() == [0, 1, 2]
    assert sampler.position == 4
    assert_same_bits(restored, tree)
    assert_same_bits(optimizer.gather_state(), state)
    if world.rank < 2:
        assert mx.random.state[0].tolist() == [0, 7 + world.rank]


@pytest.mark.mpi(min_size=2)
def test_save_writes_the_bytes_of_version_0_1_0(world, shared_folder):
    # Ranks from 2 on do the same among themselves.
    part = world.split(int(world.rank >= 2))
    tree, optimizer = train_as_saved(part)
    sampler = mlxdist.ShardedSampler(20, world=part, batch_size=2)
    next(iter(sampler))
    mx.random.seed(7 + world.rank)
    folder = shared_folder / str(world.rank >= 2)
    path = save_checkpoint(folder, 2, tree, optimizer, EXTRA, sampler=sampler)
    if world.rank < 2:
        old = DATA / path.name
        assert sorted(os.listdir(path)) == sorted(os.listdir(old))
        for name in ("rank-00000.safetensors", "rank-00001.safetensors"):
            assert (path / name).read_bytes() == (old / name).read_bytes()
        assert stable_content(path) == stable_content(old)


def stable_content(path):
    """Return a manifest's text without what differs from save to save."""
    content = json.loads((path / NAME).read_text())
    assert {"sha256", "saved_at", "versions"} <= content.keys()
    kept = {k: v for k, v in content.items() if k not in ("sha256", "saved_at")}
    return json.dumps({**kept, "versions": sorted(content["versions"])})


def test_load_refuses_a_checkpoint_saved_in_mid_step(world, shared_folder):
    """Version 0.1.0 could save between the micro-batches of a step."""
    tree, optimizer = make_run(world)
    path = save_checkpoint(shared_folder, 1, tree, optimizer)
    (save,) = directory.list_saves(shared_folder)
    world.barrier()
    if world.is_root:
        data = directory.read_manifest(shared_folder, save)
        manifest = directory.parse_manifest(data, shared_folder, save)
        counters = {**manifest.counters, "accumulated": 3}
        edited = msgspec.structs.replace(manifest, counters=counters)
        (path / NAME).write_bytes(to_bytes(edited))
    world.barrier()
    restored = zeros(tree)
    assert_all_raise(
        world,
        CheckpointError,
        "after 3 of its micro-batches.*load the model alone",
        lambda: load_checkpoint(shared_folder, restored, optimizer),
    )
    load_checkpoint(shared_folder, restored)
    assert_same_bits(restored, tree)
