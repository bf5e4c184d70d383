"""Dtypes by name: the one table, and both ways through it."""

from __future__ import annotations

import mlx.core as mx

from ..layout.entries import ITEM_SIZES
from .types import Dtype

# All that MLX has. It calls one of them `mx.bool_`, whose name is "bool".
DTYPES: dict[str, Dtype] = {
    name: getattr(mx, "bool_" if name == "bool" else name) for name in ITEM_SIZES
}


def dtype_name(dtype: object) -> str:
    """mx.float32 -> "float32"."""
    return str(dtype).rpartition(".")[2]


def dtype_of(name: str) -> Dtype:
    """Return "float32" -> mx.float32. KeyError for a name that MLX doesn't have."""
    return DTYPES[name]
