"""Arrays to one flat vector, and one flat vector to arrays.

Both are compiled: not for the arithmetic, but because building the graph for thousands
of small tensors would cost a microsecond of Python each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mlx.core as mx

from .dtypes import dtype_of
from .types import Array, Dtype, Pieces


class Join:
    """Concatenates arrays of any shape into one flat vector of a dtype."""

    def __init__(self, dtype: str):
        self._dtype: Dtype = dtype_of(dtype)
        self._compiled: Callable[[Pieces], Array] = mx.compile(self._join)

    def __call__(self, parts: Pieces) -> Array:
        return self._join(parts) if len(parts) < 2 else self._compiled(parts)

    def _join(self, parts: Pieces) -> Array:
        if not parts:
            return mx.zeros(0, self._dtype)
        flat = [part.reshape(-1) for part in parts]
        return (flat[0] if len(flat) == 1 else mx.concatenate(flat)).astype(self._dtype)


class Split:
    """Cuts one flat vector into views.

    Args:
        bounds: elements [start, stop) of each view.
        shapes: of each view.
    """

    def __init__(
        self, bounds: Sequence[tuple[int, int]], shapes: Sequence[tuple[int, ...]]
    ):
        self._views = list(zip(bounds, shapes, strict=True))
        self._compiled: Callable[[Array], Pieces] = mx.compile(self._split)

    def __call__(self, flat: Array) -> Pieces:
        return self._split(flat) if len(self._views) < 2 else self._compiled(flat)

    def _split(self, flat: Array) -> Pieces:
        return [flat[start:stop].reshape(shape) for (start, stop), shape in self._views]


class Chunk:
    """A rank's part of one bucket: one flat vector, or the pieces that make it up.

    Each consumer asks for the form that it works on; the other one is made then.
    """

    def __init__(
        self, split: Split, *, flat: Array = None, pieces: Pieces | None = None
    ):
        self._split = split
        self._flat = flat
        self._pieces = pieces

    @property
    def arrays(self) -> Pieces:
        """The arrays as they lie in memory: the flat vector, or the pieces."""
        return [self._flat] if self._pieces is None else self._pieces

    def flat(self, join: Join) -> Array:
        """Return one vector, joined by `join` where there are pieces."""
        return self._flat if self._pieces is None else join(self._pieces)

    def pieces(self) -> Pieces:
        """Return the pieces in their shapes."""
        return self._split(self._flat) if self._pieces is None else self._pieces
