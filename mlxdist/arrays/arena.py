"""Memory for results that are written by numpy, cut from large blocks.

MLX has no `empty`: a small array costs a zero-filling or a copy, and a hand-over to the
stream's thread. For a large one that is little (see `uninitialized`); small ones share.
"""

from __future__ import annotations

from typing import NamedTuple

from .numpy_view import raw, uninitialized
from .types import Array, Dtype, Raw

# Bytes of a block. It lives as long as any array that was cut from it. So an arena is
# for arrays that live equally long, and larger ones have memory of their own.
BLOCK_BYTES = 2**20
ALONE_FROM = 2**18  # bytes
_ALIGNMENT = 64  # elements


class Memory(NamedTuple):
    """A lazy vector, and its bits, which are to be written before it is evaluated."""

    array: Array
    bits: Raw


class Arena:
    """Allocates vectors, for one thread."""

    def __init__(self) -> None:
        self._blocks: dict[Dtype, tuple[Memory, int]] = {}  # with elements used

    def allocate(self, size: int, dtype: Dtype) -> Memory:
        """Return a vector with arbitrary content."""
        whole = BLOCK_BYTES // dtype.size
        if size * dtype.size >= ALONE_FROM:
            return _allocate(size, dtype)
        block, start = self._blocks.get(dtype, (None, 0))
        if block is None or start + size > block.bits.size:
            block, start = _allocate(whole, dtype), 0
        stop = start + size
        self._blocks[dtype] = block, -(-stop // _ALIGNMENT) * _ALIGNMENT
        return Memory(block.array[start:stop], block.bits[start:stop])


def _allocate(size: int, dtype: Dtype) -> Memory:
    array = uninitialized(size, dtype)
    return Memory(array, raw(array, f"u{dtype.size}"))
