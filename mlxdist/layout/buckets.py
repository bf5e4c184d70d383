"""Gradient buckets: which parameters share a collective, and in which order."""

from __future__ import annotations

from collections.abc import Sequence

from .entries import Entry
from .paths import KeyPath

DEFAULT_BUCKET_SIZE = 4 * 2**20  # bytes

# Bytes from which on a tensor is a bucket of its own, and is sent from its own memory:
# the copy into a shared bucket would cost more than one more collective.
ALONE_FROM = 2**20

# Bytes of buckets whose collective is started and not finished: enough to keep the wire
# busy while one is packed and one is unpacked, few enough to bound the memory.
IN_FLIGHT = 16 * 2**20
# The same where ranks compute and communicate in turn, so that no wire is kept busy:
# exceeded by two buckets of 4 MiB.
IN_FLIGHT_IN_TURN = 7 * 2**20


def make_buckets(
    entries: Sequence[Entry],
    bucket_size: int,
    order: Sequence[KeyPath] = (),
    *,
    least_size: int = 0,
) -> list[list[int]]:
    """Group small entries of one dtype until a group has `bucket_size` bytes.

    Args:
        entries: in the order of `in_order`.
        bucket_size: bytes. A tensor of that size, or of 1 MiB, is a bucket of its own.
        order: the paths in the order in which the model uses them; sorted if empty.
        least_size: bytes, where a smaller collective costs more than the copy.

    Returns:
        Lists of indices into `entries`, last layers first: the order in which the
        backward pass finishes them (Li et al., "PyTorch Distributed", VLDB 2020).
    """
    if bucket_size < 1:
        raise ValueError(f"bucket_size is {bucket_size} bytes; it must be positive")
    bucket_size = max(bucket_size, least_size)
    alone_from = max(min(bucket_size, ALONE_FROM), least_size)
    closed: list[list[int]] = []
    open_buckets: dict[str, list[int]] = {}
    filled: dict[str, int] = {}
    position_of = {path: number for number, path in enumerate(order)}
    indices = sorted(
        range(len(entries)), key=lambda i: position_of.get(entries[i].path, i)
    )
    for index in reversed(indices):
        entry = entries[index]
        if entry.nbytes >= alone_from:
            closed.append([index])
            continue
        bucket = open_buckets.setdefault(entry.dtype, [])
        bucket.append(index)
        filled[entry.dtype] = filled.get(entry.dtype, 0) + entry.nbytes
        if filled[entry.dtype] >= bucket_size:
            closed.append(open_buckets.pop(entry.dtype))
            filled[entry.dtype] = 0
    return closed + [open_buckets[dtype] for dtype in sorted(open_buckets)]
