"""The user's own data: JSON values with arrays, the sampler, mx.random's keys."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from typing import Protocol

import mlx.core as mx
import numpy as np

from ..arrays.types import Array
from ..layout.entries import ITEM_SIZES
from ..layout.paths import KeyPath
from .manifest import Json

# A value that JSON lacks is encoded as a dict whose first key is one of these.
_MLX, _NUMPY, _FLOAT, _TUPLE = "$mlx", "$numpy", "$float", "$tuple"
_MAX_DEPTH = 100


class Sampler(Protocol):
    """Data order that can be saved and resumed, as a ShardedSampler's."""

    def state_dict(self) -> dict[str, Json]: ...

    def load_state_dict(self, state: dict[str, Json], /) -> object: ...


def encode(value: object) -> tuple[Json, dict[str, Array]]:
    """Return a tree as JSON values, and its arrays by path.

    Raises:
        ValueError: on a leaf that is neither a JSON value nor an array, with its path.
    """
    arrays: dict[str, Array] = {}
    return _encode(value, KeyPath(), arrays), arrays


def _encode(value: object, path: KeyPath, arrays: dict[str, Array]) -> Json:
    if isinstance(value, np.number | np.bool_) and value.dtype.kind in "biuf":
        value = value.item()  # a Python number, which is also loaded as one
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {_FLOAT: repr(value)}
    if len(path) > _MAX_DEPTH:
        raise ValueError(f"extra is nested more than {_MAX_DEPTH} deep")
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str) or key.startswith("$"):
                raise ValueError(
                    f"{_text(path)} has the key {key!r}; it must be text that does not "
                    "begin with $"
                )
        items = value.items()
        return {k: _encode(v, KeyPath((*path, k)), arrays) for k, v in items}
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        pairs = enumerate(value)
        encoded = [_encode(v, KeyPath((*path, i)), arrays) for i, v in pairs]
        return encoded if isinstance(value, list) else {_TUPLE: encoded}
    if isinstance(value, mx.array | np.ndarray):
        return _encode_array(value, path, arrays)
    raise ValueError(
        f"{_text(path)} is a {type(value).__name__}; it must be a number, text, None, "
        "an array, or a list, tuple or dict of them. Nothing is pickled"
    )


def _text(path: KeyPath) -> str:
    return f"extra.{path}" if path else "extra"


def _encode_array(value: Array, path: KeyPath, arrays: dict[str, Array]) -> Json:
    name = path.text or "extra"
    if isinstance(value, mx.array):
        arrays[name] = value
        return {_MLX: name}
    if isinstance(value, np.ma.MaskedArray):
        raise ValueError(f"{_text(path)} has a mask, which can't be saved")
    if value.dtype.name not in ITEM_SIZES or not value.dtype.isnative:
        raise ValueError(
            f"{_text(path)} is an array of {value.dtype}, which can't be saved"
        )
    # As bytes, since accelerators lack float64 and complex128.
    flat = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
    arrays[name] = mx.array(flat)
    return {_NUMPY: name, "dtype": value.dtype.name, "shape": list(value.shape)}


def decode(value: Json, arrays: Mapping[str, Array]) -> Json:
    """Return the tree that `encode` was given.

    Raises:
        ValueError: if it names an array that is missing, or one twice: each is copied,
            so that a small file could fill the memory.
    """
    return _decode(value, dict(arrays))


def _decode(value: Json, arrays: dict[str, Array]) -> Json:
    if isinstance(value, list):
        return [_decode(item, arrays) for item in value]
    if not isinstance(value, dict):
        return value
    marker = next(iter(value), "")
    if not marker.startswith("$"):
        return {key: _decode(item, arrays) for key, item in value.items()}
    try:
        return _decode_marked(marker, value, arrays)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        short = reprlib.repr(value)
        raise ValueError(f"extra has an invalid {short}: {error!r:.200}") from None


def _decode_marked(
    marker: str, value: dict[str, Json], arrays: dict[str, Array]
) -> Json:
    content = value[marker]
    if marker == _FLOAT and content in ("nan", "inf", "-inf"):
        return float(content)
    if marker == _TUPLE:
        return tuple(_decode(item, arrays) for item in content)
    if marker == _MLX:
        return arrays.pop(content)
    if marker == _NUMPY and value["dtype"] in ITEM_SIZES:
        flat = np.array(arrays.pop(content))
        return flat.view(value["dtype"]).reshape(value["shape"])
    raise ValueError(f"unknown marker {marker}")


def random_key() -> tuple[int, int]:
    """Return the state of this rank's mx.random."""
    state: Array = mx.random.state
    high, low = state[0].tolist()
    return int(high), int(low)


def set_random_key(keys: tuple[tuple[int, int], ...], rank: int) -> None:
    """Resume mx.random from the rank's key; a rank that has none gets a new one."""
    if rank < len(keys):
        high, low = keys[rank]
    else:
        mixed = np.random.SeedSequence([*keys[0], rank]).generate_state(2, np.uint32)
        high, low = (int(half) for half in mixed)
    mx.random.seed((high << 32) | low)  # a seed's halves are its key in MLX
