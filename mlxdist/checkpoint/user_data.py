"""What a user saves beside the model: JSON values and arrays, and the random keys."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import numpy as np

from ..arrays.trees import dtype_name
from ..arrays.types import Array
from ..layout.entries import ITEM_SIZES

# What JSON does not have stands in a dict with this one key.
_MLX, _NUMPY, _FLOAT, _TUPLE = "$mlx", "$numpy", "$float", "$tuple"


def encode(value: Any) -> tuple[Any, dict[str, Array]]:
    """A tree as JSON values, and its arrays by their places.

    Raises:
        ValueError: on what is neither, with its place.
    """
    arrays: dict[str, Array] = {}
    return _encode(value, "", arrays), arrays


def _encode(value: Any, place: str, arrays: dict[str, Array]) -> Any:
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {_FLOAT: repr(value)}
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str) or key.startswith("$"):
                raise ValueError(
                    f"extra{place} has the key {key!r}; it must be text that does not "
                    "begin with $"
                )
        return {k: _encode(v, f"{place}.{k}", arrays) for k, v in value.items()}
    if type(value) in (list, tuple):
        items = [_encode(v, f"{place}.{i}", arrays) for i, v in enumerate(value)]
        return items if isinstance(value, list) else {_TUPLE: items}
    if isinstance(value, mx.array | np.ndarray):
        return _encode_array(value, place, arrays)
    raise ValueError(
        f"extra{place} is a {type(value).__name__}; it must be a number, text, None, a "
        "list, tuple or dict of such, or an array. Nothing is pickled"
    )


def _encode_array(value: Any, place: str, arrays: dict[str, Array]) -> Any:
    name = place.removeprefix(".") or "extra"
    if name in arrays:
        raise ValueError(f"extra has two arrays at {name!r}; rename a key with a dot")
    if isinstance(value, mx.array):
        arrays[name] = value
        return {_MLX: name}
    if value.dtype.name not in ITEM_SIZES or not value.dtype.isnative:
        raise ValueError(
            f"extra{place} is an array of {value.dtype}, which has no place"
        )
    # As bytes, which keeps float64 and complex128's like off the accelerator.
    flat = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
    arrays[name] = mx.array(flat)
    return {_NUMPY: name, "dtype": value.dtype.name, "shape": list(value.shape)}


def decode(value: Any, arrays: Mapping[str, Array]) -> Any:
    """The tree that `encode` took.

    Raises:
        ValueError: where it names an array that is not there.
    """
    if isinstance(value, list):
        return [decode(item, arrays) for item in value]
    if not isinstance(value, dict):
        return value
    marker = next(iter(value), "")
    if not marker.startswith("$"):
        return {key: decode(item, arrays) for key, item in value.items()}
    try:
        return _decode_marked(marker, value, arrays)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"extra has a wrong {value}: {error!r}") from None


def _decode_marked(
    marker: str, value: dict[str, Any], arrays: Mapping[str, Array]
) -> Any:
    held = value[marker]
    if marker == _FLOAT and held in ("nan", "inf", "-inf"):
        return float(held)
    if marker == _TUPLE:
        return tuple(decode(item, arrays) for item in held)
    if marker == _MLX:
        return arrays[held]
    if marker == _NUMPY and value["dtype"] in ITEM_SIZES:
        flat: Any = np.array(arrays[held])
        return flat.view(value["dtype"]).reshape(value["shape"])
    raise ValueError("unknown mark")


def described(arrays: Mapping[str, Array]) -> dict[str, list[Any]]:
    return {name: [dtype_name(a.dtype), *a.shape] for name, a in arrays.items()}


def random_key() -> tuple[int, int]:
    """The state of this rank's mx.random."""
    state: Any = mx.random.state
    high, low = state[0].tolist()
    return int(high), int(low)


def set_random_key(keys: tuple[tuple[int, int], ...], rank: int) -> None:
    """Goes on with the rank's own key; ranks that are new get one of their own."""
    if rank < len(keys):
        high, low = keys[rank]
    else:
        mixed = np.random.SeedSequence([*keys[0], rank]).generate_state(2, np.uint32)
        high, low = (int(word) for word in mixed)
    mx.random.seed((high << 32) | low)  # MLX's key of a seed are its two halves
