"""Blocks of 8-bit optimizer state: which parameters have them."""

from __future__ import annotations

from collections.abc import Collection

from .entries import Entry

BLOCK = 64  # elements that have a scale together
SMALLEST = 4096  # elements from which on a tensor's state is kept in 8 bits


def is_quantized(entry: Entry, float32_state: Collection[str] = ()) -> bool:
    """Return whether `state_dtype="int8"` keeps a parameter's moments in 8 bits.

    Vectors, such as norms and biases, and small tensors keep what MLX makes: they are a
    small part of the bytes, and their updates are sensitive to rounding.

    Args:
        float32_state: texts; a parameter whose dotted path contains one is left out.
    """
    return (
        "float" in entry.dtype
        and len(entry.shape) > 1
        and entry.size >= SMALLEST
        and entry.size % BLOCK == 0
        and not any(text in entry.path.dotted for text in float32_state)
    )
