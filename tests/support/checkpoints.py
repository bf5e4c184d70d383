"""Training runs to save and resume, for the tests of checkpoints."""

import json

import mlx.core as mx
from mlx.utils import tree_map

import mlxdist
from tests.support.examples import distributed, gradients, make, parameters


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
