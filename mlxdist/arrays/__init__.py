"""MLX arrays and parameter trees in one process; nothing here communicates."""

from .dtypes import dtype_name
from .trees import digest, entries_of, leaves_of, rebuild, trainable
from .types import Array, Flat, Pieces, Tree

__all__ = [
    "Array",
    "Flat",
    "Pieces",
    "Tree",
    "digest",
    "dtype_name",
    "entries_of",
    "leaves_of",
    "rebuild",
    "trainable",
]
