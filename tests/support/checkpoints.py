"""Runs to be saved and resumed, for the tests of checkpoints."""

import json

import mlx.core as mx
from mlx.utils import tree_map

import mlxdist
from tests.support.examples import gradients, make, parameters


def started(world, name="AdamW", shard=True, bucket_size=256, **options):
    optimizer = mlxdist.DistributedOptimizer(
        make(name), shard=shard, bucket_size=bucket_size, world=world, **options
    )
    own = parameters(name)
    optimizer.init(own)
    return own, optimizer


def train(own, optimizer, world, steps):
    for step in steps:
        grads = gradients(own, step, world.rank, whole=False)
        own = optimizer.apply_gradients(grads, own)
    mx.eval(own)
    return own


def zeros(like):
    return tree_map(mx.zeros_like, like)


class Data:
    """A sampler over 101 examples."""

    def __init__(self, world):
        self.sampler = mlxdist.ShardedSampler(101, world=world, seed=3, batch_size=4)

    def take(self, batches):
        """The examples of so many batches, over all ranks."""
        found = []
        for one in self.sampler:
            found += one.tolist()
            batches -= 1
            if not batches:
                break
        return found


def everywhere(world, found):
    """All ranks' numbers, sorted."""
    texts = world.control.all_gather_bytes(json.dumps(found).encode())
    return sorted(number for text in texts for number in json.loads(text))
