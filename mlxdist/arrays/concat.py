"""Arrays into one flat vector, and one flat vector into arrays.

Compiled, not for the arithmetic, but because thousands of small tensors would cost a
microsecond of Python each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx

from .types import Array, Pieces


class Join:
    """Arrays -> one flat vector of a dtype."""

    def __init__(self, dtype: str):
        self._dtype: Any = getattr(mx, dtype)
        self._compiled: Callable[..., Array] = mx.compile(self._join)

    def __call__(self, parts: Pieces, *, traced: bool) -> Array:
        plain = traced or len(parts) < 2
        return self._join(parts) if plain else self._compiled(parts)

    def _join(self, parts: Pieces) -> Array:
        if not parts:
            return mx.zeros(0, self._dtype)
        flat = [part.reshape(-1) for part in parts]
        return (flat[0] if len(flat) == 1 else mx.concatenate(flat)).astype(self._dtype)


class Split:
    """One flat vector -> views of it, from and to given places, in given shapes."""

    def __init__(
        self, bounds: Sequence[tuple[int, int]], shapes: Sequence[tuple[int, ...]]
    ):
        self._parts = list(zip(bounds, shapes, strict=True))
        self._compiled: Callable[..., Pieces] = mx.compile(self._split)

    def __call__(self, flat: Array, *, traced: bool) -> Pieces:
        plain = traced or len(self._parts) < 2
        return self._split(flat) if plain else self._compiled(flat)

    def _split(self, flat: Array) -> Pieces:
        return [flat[a:b].reshape(shape) for (a, b), shape in self._parts]
