"""Training runs to save and resume, for the tests of checkpoints."""

import json

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_map

import mlxdist
from mlxdist.checkpoint.block_file import BLOCK, Writer
from mlxdist.checkpoint.manifest import (
    Manifest,
    Piece,
    SavedArray,
    SavedFile,
    SavedOptimizer,
)
from tests.support.examples import distributed, gradients, make, parameters

SHA256 = "ab" * 32  # a valid one, of nothing


def put(*keys_and_value):
    """Return a change of a manifest: a value at the end of a path of keys."""
    *path, last, value = keys_and_value

    def change(content):
        for key in path:
            content = content[key]
        content[last] = value

    return change


def make_run(world, name="AdamW", shard=True, bucket_size=256, **options):
    """Return a tree of parameters and an initialized optimizer of an MLX class."""
    optimizer = distributed(
        world, make(name), shard=shard, bucket_size=bucket_size, **options
    )
    tree = parameters(name)
    optimizer.init(tree)
    return tree, optimizer


def train(tree, optimizer, world, steps):
    """Train on normally distributed gradients, different on each rank."""
    for step in steps:
        grads = gradients(tree, step, world.rank, integers=False)
        tree = optimizer.apply_gradients(grads, tree)
    mx.eval(tree)
    return tree


def zeros(like):
    return tree_map(mx.zeros_like, like)


class Examples:
    """The indices of 101 examples, sampled without replacement over the ranks."""

    def __init__(self, world):
        self.sampler = mlxdist.ShardedSampler(101, world=world, seed=3, batch_size=4)

    def take(self, batches):
        """Return this rank's indices in the next `batches` batches."""
        indices = []
        for index_batch in self.sampler:
            indices += index_batch.tolist()
            batches -= 1
            if not batches:
                break
        return indices


def gather_sorted(world, numbers):
    """Return all ranks' numbers in one sorted list."""
    texts = world.control.all_gather_bytes(json.dumps(numbers).encode())
    return sorted(number for text in texts for number in json.loads(text))


def assert_all_raise(world, error, match, call):
    """Assert that a call raises the error on all ranks."""
    with pytest.raises(error, match=match):
        call()
    world.barrier()


def example_manifest():
    """Return one of two files, with an array in each and one that is cut over both."""
    return Manifest(
        step=7,
        saved_at="2026-01-31T12:00:00Z",
        world_size=2,
        strategy="elements",
        layout="0123456789abcdef",
        versions={"mlx": "1"},
        optimizer=(SavedOptimizer("", "AdamW", ("eps = 1",), ("w",)),),
        counters={"updates": 7},
        random=((0, 1), (2, 3)),
        sampler=None,
        extra={"a": [1, 2.5]},
        block=BLOCK,
        disks=(0, 0),
        files=(
            SavedFile("rank-00000.safetensors", 1000, (SHA256,)),
            SavedFile("rank-00001.safetensors", BLOCK + 1, (SHA256, SHA256)),
        ),
        arrays=(
            SavedArray("parameters", "v", "", "float32", (2, 3), (Piece(0, 6, 0, 80),)),
            SavedArray("parameters", "none", "", "float32", (0, 3)),
            SavedArray(
                "optimizer",
                "w",
                "m",
                "bfloat16",
                (10,),
                (Piece(0, 4, 0, 200), Piece(4, 10, 1, 200)),
            ),
        ),
    )


def random_bytes(nbytes):
    return np.random.default_rng(nbytes).integers(0, 256, nbytes, np.uint8)


def write_blocks(path, data, calls=3):
    """Write data by that many calls, and return the sha256 of each block."""
    with Writer(path) as writer:
        for part in np.array_split(data, calls):
            writer.write(part.data)
        return writer.finish()
