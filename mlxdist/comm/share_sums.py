"""Sums over a step's micro-batches of what this rank steps, kept between them."""

from __future__ import annotations

import mlx.core as mx

from ..arrays.concat import Chunk
from ..arrays.types import Pieces


class ShareSums:
    """This rank's spans of the ranks' weighted sums, in float32: 4/N bytes a parameter.

    Attributes:
        weight: of all micro-batches of all ranks that are in the sums.
    """

    def __init__(self) -> None:
        self._arrays: dict[int, Pieces] = {}  # by index of the bucket
        self.weight = 0.0

    def add(self, index: int, chunk: Chunk) -> None:
        """Add a micro-batch's sum over the ranks of one bucket. Evaluates it."""
        arrays = self._sum(index, chunk)
        mx.eval(arrays)
        self._arrays[index] = arrays

    def mean(self, index: int, chunk: Chunk) -> Chunk:
        """Return the mean, with the last micro-batch's sum, of one bucket."""
        return chunk.like([array / self.weight for array in self._sum(index, chunk)])

    def _sum(self, index: int, chunk: Chunk) -> Pieces:
        earlier = self._arrays.pop(index, None)
        if earlier is None:
            return chunk.arrays
        # Each array is dropped as the sum is made, so that MLX can reuse its memory.
        return [earlier.pop(0) + array for array in chunk.arrays]
