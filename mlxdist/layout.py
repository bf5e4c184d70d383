"""From parameter paths to buckets: pure integers, no arrays, no communication.

A layout says in which order the parameters travel and which of them share a bucket.
It depends on paths, shapes and dtypes alone, never on the order of a dict, so that
all ranks come to the same one by themselves.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

ITEM_SIZES = {
    "bool": 1,
    "uint8": 1,
    "int8": 1,
    "uint16": 2,
    "int16": 2,
    "float16": 2,
    "bfloat16": 2,
    "uint32": 4,
    "int32": 4,
    "float32": 4,
    "uint64": 8,
    "int64": 8,
    "float64": 8,
    "complex64": 8,
}


@dataclass(frozen=True)
class Entry:
    """One parameter: its path in the tree, its shape and the name of its dtype."""

    path: str
    shape: tuple[int, ...]
    dtype: str

    @cached_property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * ITEM_SIZES[self.dtype]

    def __str__(self) -> str:
        return f"{self.path} {self.dtype}{list(self.shape)}"


def path_key(path: str) -> tuple[tuple[int, int, str], ...]:
    """Sorts paths so that `layers.2` comes before `layers.10`."""
    return tuple(
        (0, int(part), "") if part.isdecimal() else (1, 0, part)
        for part in path.split(".")
    )


def in_order(entries: Iterable[Entry]) -> tuple[Entry, ...]:
    """The entries sorted by path.

    Raises:
        ValueError: where two entries have one path, as `{"a.b": x, "a": {"b": y}}` has.
    """
    ordered = tuple(sorted(entries, key=lambda entry: path_key(entry.path)))
    for one, other in pairwise(ordered):
        if one.path == other.path:
            raise ValueError(
                f"two parameters have the path {one.path!r}: {one} and {other}. "
                "Rename a key that contains a dot."
            )
    return ordered


# Bytes from which on a tensor travels from where it lies: copying it into a bucket with
# others would cost more than it costs to start one more exchange.
ALONE_FROM = 2**20


def make_buckets(
    entries: Sequence[Entry], bucket_size: int, order: Sequence[str] = ()
) -> list[list[int]]:
    """Groups small entries of one dtype until a group holds `bucket_size` bytes.

    Args:
        entries: in the order of `in_order`.
        bucket_size: bytes. A tensor as big, or of 1 MiB, is a bucket of its own.
        order: the paths as the model uses them, first layers first; as they are sorted
            where it is empty.

    Returns:
        Lists of indices into `entries`, last layers first: the order in which the
        backward pass finishes them (Li et al., "PyTorch Distributed", VLDB 2020).
    """
    if bucket_size < 1:
        raise ValueError(f"bucket_size is {bucket_size} bytes; it must be positive")
    closed: list[list[int]] = []
    open_buckets: dict[str, list[int]] = {}
    filled: dict[str, int] = {}
    place = {path: number for number, path in enumerate(order)}
    numbers = sorted(range(len(entries)), key=lambda i: place.get(entries[i].path, i))
    for index in reversed(numbers):
        entry = entries[index]
        if entry.nbytes >= min(bucket_size, ALONE_FROM):
            closed.append([index])
            continue
        bucket = open_buckets.setdefault(entry.dtype, [])
        bucket.append(index)
        filled[entry.dtype] = filled.get(entry.dtype, 0) + entry.nbytes
        if filled[entry.dtype] >= bucket_size:
            closed.append(open_buckets.pop(entry.dtype))
            filled[entry.dtype] = 0
    return closed + [open_buckets[dtype] for dtype in sorted(open_buckets)]


def fingerprint(description: object) -> int:
    """64 bits of the sha256 of anything that JSON can write, the same on all ranks."""
    text = json.dumps(description, sort_keys=True, separators=(",", ":"))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
