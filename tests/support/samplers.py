"""Samplers without a world, and passes that a loop leaves early."""

from typing import NamedTuple

from mlxdist.data import ShardedSampler


class FakeWorld(NamedTuple):
    rank: int
    size: int


def make_sampler(n, *, rank=0, size=1, **options):
    return ShardedSampler(n, world=FakeWorld(rank, size), **options)


def sampler_position(sampler):
    return sampler.epoch, sampler.position


def take(ranks, batches):
    """Return the first global batches of a pass, which is left by `break`."""
    by_rank = []
    for sampler in ranks:
        parts = []
        for batch in sampler:
            parts.append(batch)
            if len(parts) == batches:
                break
        by_rank.append(parts)
    return list(zip(*by_rank, strict=True))
