"""Arrays to one flat vector, and one flat vector to arrays.

Not compiled: to compile either takes time with the square of the number of arrays, and
makes it no faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import mlx.core as mx

from .dtypes import dtype_of
from .types import Array, Dtype, Pieces

# Views from which on one operation makes all of them.
_MANY = 64


def join(parts: Pieces) -> Array:
    """Return arrays of one dtype, at least one, as one flat vector."""
    # A reshape of a vector would be an operation too, to be queued and waited for.
    flat = [part if part.ndim == 1 else part.reshape(-1) for part in parts]
    return flat[0] if len(flat) == 1 else mx.concatenate(flat)


class Join:
    """Concatenates arrays of any shape into one flat vector of a dtype."""

    def __init__(self, dtype: str):
        self._dtype: Dtype = dtype_of(dtype)

    def __call__(self, parts: Pieces) -> Array:
        if not parts:
            return mx.zeros(0, self._dtype)
        return join(parts).astype(self._dtype)


class Split:
    """Cuts one flat vector into views.

    Args:
        offsets: of the first element of each view, and of the end of the last one.
        shapes: of each view.
    """

    def __init__(self, offsets: Sequence[int], shapes: Sequence[tuple[int, ...]]):
        self._shapes = list(shapes)
        self._offsets = list(offsets)
        assert len(self._offsets) == len(self._shapes) + 1

    def __call__(self, flat: Array) -> Pieces:
        offsets = self._offsets
        if len(self._shapes) < _MANY or len(flat) != offsets[-1] or offsets[0]:
            parts = [flat[start:stop] for start, stop in pairwise(offsets)]
        else:
            parts = list(mx.split(flat, offsets[1:-1]))
        return self.shaped(parts)

    def shaped(self, parts: Pieces) -> Pieces:
        """Return arrays, one for each view, in the shapes of the views."""
        pairs = zip(parts, self._shapes, strict=True)
        return [part if part.shape == s else part.reshape(s) for part, s in pairs]


class Chunk:
    """A rank's part of one bucket: one flat vector, or the pieces that make it up.

    Pieces may have other shapes than the views of the vector, of as many elements. Each
    consumer asks for the form that it works on; the other one is made then.

    Attributes:
        is_reusable: whether the arrays' memory may be reused once they are dropped. A
            flat vector is the result of a collective; pieces may be a user's arrays.
    """

    def __init__(
        self, split: Split, *, flat: Array = None, pieces: Pieces | None = None
    ):
        self._split = split
        self._flat = flat
        self._pieces = pieces
        self.is_reusable = pieces is None

    def like(self, arrays: Pieces) -> Chunk:
        """Return other values, in the form of `arrays`."""
        if self._pieces is None:
            return Chunk(self._split, flat=arrays[0])
        return Chunk(self._split, pieces=arrays)

    @property
    def arrays(self) -> Pieces:
        """The arrays as they lie in memory: the flat vector, or the pieces."""
        return [self._flat] if self._pieces is None else self._pieces

    def flat(self, join: Join) -> Array:
        """Return one vector, joined by `join` where there are pieces."""
        return self._flat if self._pieces is None else join(self._pieces)

    def drop(self) -> None:
        """Drop all arrays."""
        self._flat, self._pieces = None, []

    def pieces(self) -> Pieces:
        """Return the pieces in their shapes."""
        if self._pieces is None:
            return self._split(self._flat)
        return self._split.shaped(self._pieces)
