"""Bytes that a rank sends in a collective, from the plan alone.

`S` stands for the bytes of the whole array and `N` for the number of ranks.
"""

from __future__ import annotations

from .sharding import Bucket


def all_reduce_bytes(nbytes: int, ranks: int) -> int:
    """Bytes in the best possible all-reduce, 2(N-1)/N S, which MPI is taken to use.

    Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms", JPDC 2009.
    """
    return round(2 * (ranks - 1) / ranks * nbytes)


def gather_whole_bytes(nbytes: int, ranks: int) -> int:
    """Bytes where every rank sends its whole array to every other one: (N-1) S."""
    return (ranks - 1) * nbytes


def reduce_scatter_bytes(bucket: Bucket, rank: int, item_size: int) -> int:
    """Bytes in a pairwise reduce-scatter: all but the rank's own span."""
    start, stop = bucket.span(rank)
    return (bucket.size - (stop - start)) * item_size


def all_gather_bytes(bucket: Bucket, rank: int, item_size: int) -> int:
    """Bytes in a pairwise all-gather: the rank's own span to every other rank."""
    start, stop = bucket.span(rank)
    return (bucket.ranks - 1) * (stop - start) * item_size


def padded_all_gather_bytes(bucket: Bucket, item_size: int) -> int:
    """Bytes in an all-gather of spans padded to the longest one."""
    return (bucket.ranks - 1) * bucket.chunk * item_size
