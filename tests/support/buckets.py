"""Buckets and weights for the tests of the transports."""

import numpy as np

from mlxdist.comm.reduction import Weights, weigh
from mlxdist.layout.sharding import Bucket, make_plan
from tests.support.plans import make_entry


def flat_bucket(world, size, dtype="float32"):
    """Return a bucket of one array, cut into equal slices."""
    return Bucket((make_entry("a", (size,), dtype),), world.size)


def bucket_of_owners(world, size):
    """Return a bucket of three arrays, each of which one rank owns."""
    entries = [make_entry(f"p{i}", (size // 3 + i,), "float32") for i in range(3)]
    plan = make_plan(entries, world.size, strategy="tensors", bucket_size=2**30)
    return plan.buckets[0]


def bucket_of_one_large_owner(world, size):
    """Return a bucket of which one rank has all but an element each: more rounds."""
    sizes = [1] * (world.size - 1) + [size]
    entries = [make_entry(f"p{i}", (n,), "float32") for i, n in enumerate(sizes)]
    return Bucket(tuple(entries), world.size, tuple(range(world.size)))


def bucket_of_blocks(world, size):
    """Return a bucket of three arrays, cut between blocks of 64 into unequal slices."""
    entries = [make_entry(f"p{i}", (size // 3 + i,), "float32") for i in range(3)]
    return Bucket(tuple(entries), world.size, block=64)


def known_weights(world, weights=None):
    """Return the weights of all ranks, which are 1 by default."""
    return Weights.known(world.rank, tuple(weights or [1.0] * world.size))


def contribution(comm, array, weights):
    """Return an array as a reduction over a transport takes it: weighted, or as is."""
    return [array if comm.adds_in_rank_order else weigh(array, weights)]


def values_of(array):
    """Return the set of an array's elements."""
    return set(np.array(array).tolist())
