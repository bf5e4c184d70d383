"""MLX's dtypes and their names."""

from __future__ import annotations

import mlx.core as mx

from ..layout.entries import ITEM_SIZES
from .types import Dtype

# The attribute of `mx` for "bool" is `mx.bool_`.
DTYPES: dict[str, Dtype] = {
    name: getattr(mx, "bool_" if name == "bool" else name) for name in ITEM_SIZES
}


def dtype_name(dtype: object) -> str:
    """mx.float32 -> "float32"."""
    return str(dtype).rpartition(".")[2]


def dtype_of(name: str) -> Dtype:
    """Return the dtype of that name. Raises KeyError if MLX has none."""
    return DTYPES[name]
