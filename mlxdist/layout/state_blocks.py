"""Blocks of 8-bit optimizer state: which parameters have them."""

from __future__ import annotations

from collections.abc import Collection

from .entries import Entry

BLOCK = 64  # elements that share a scale
_LEAST_ELEMENTS = 4096
_FLOATS = ("float32", "bfloat16", "float16")


def is_quantized(entry: Entry, float32_state: Collection[str] = ()) -> bool:
    """Return whether `state_dtype="int8"` keeps a parameter's moments in 8 bits.

    Vectors, such as norms and biases, and small tensors keep state of full precision:
    it is a small part of the bytes, and their updates are sensitive to rounding.

    Args:
        float32_state: keys that exclude a parameter whose path has one of them.
    """
    return (
        entry.dtype in _FLOATS
        and len(entry.shape) >= 2
        and entry.size >= _LEAST_ELEMENTS
        and entry.size % BLOCK == 0
        and not any(str(key) in float32_state for key in entry.path)
    )
