"""Parameters as integers: paths, shapes, dtypes, their order, and fingerprints of them.

Everything here depends on paths, shapes and dtypes alone, never on the order of a dict,
so all ranks derive the same result without communicating.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from .paths import KeyPath

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

    path: KeyPath
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


def in_order(entries: Iterable[Entry]) -> tuple[Entry, ...]:
    """The entries sorted by path.

    Raises:
        ValueError: where two entries have the same path, or the same text of it.
    """
    ordered = tuple(sorted(entries, key=lambda entry: entry.path))
    for first, second in pairwise(ordered):
        if first.path.text == second.path.text:
            raise ValueError(
                f"two parameters have the path {first.path}: {first} and {second}; "
                "rename a key"
            )
    return ordered


def fingerprint(description: object) -> int:
    """64 bits of the sha256 of anything that JSON can write, the same on all ranks."""
    text = json.dumps(description, sort_keys=True, separators=(",", ":"))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def split_counts(total: int, limit: int) -> list[tuple[int, int]]:
    """[start, stop) ranges of at most `limit` that cover `total`, at least one."""
    starts: Sequence[int] = range(0, max(total, 1), limit)
    return [(start, min(start + limit, total)) for start in starts]
