"""Writes into the memory of arrays, where nothing else refers to it.

MLX's arrays never change. But MLX lets an operation write into the memory of an input
that nothing else needs ("donation"). So an update of a slice makes an array whose
memory nothing else refers to: the old one's, or that of a copy.
"""

from __future__ import annotations

import mlx.core as mx

from ..layout.paths import Key
from . import device
from .numpy_view import raw
from .types import Array, Raw, Tree


class InPlace:
    """Elements of `container[key]`, replaced part by part.

    In the memory of the old array, if `container` has the only reference to it and no
    view of it is left at the first part; otherwise in a copy. So whoever else has the
    old array never sees a change.
    """

    def __init__(self, container: Tree, key: Key):
        self._container, self._key = container, key
        self._bits: Raw | None = None

    def write(self, start: int, part: Array) -> None:
        """Replace elements [start, ...) of the flattened array; evaluates both.

        Args:
            part: 1-D, of the array's dtype.
        """
        if self._bits is not None:
            self._bits[start : start + part.size] = raw(part, self._bits.dtype)
            return
        self._update_slice(start, part)
        if device.on_cpu():  # elsewhere the array may be in memory of the accelerator
            self._bits = raw(self._container[self._key], f"u{part.itemsize}")

    def _update_slice(self, start: int, part: Array) -> None:
        mx.eval(part)  # and so what it was computed from is not needed any more
        array = self._container[self._key]
        shape, flat = array.shape, array.reshape(-1)
        flat[start : start + part.size] = part
        self._container[self._key] = flat.reshape(shape)
        del array, flat
        mx.eval(self._container[self._key])
