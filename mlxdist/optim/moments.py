"""Moments in 8 bits among the arrays of a state, and how they become float32 and back.

In a flat state, where keys are texts, the moment "m" of a parameter is "m.codes" and
"m.scales": see `quantized_state.py`. Files of plain MLX, `gather_state` and other runs
have it as one array of the parameter's shape.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import mlx.core as mx

from ..arrays.blockwise import BLOCK, DTYPES, Kind, kind_of, quantize, widen
from .quantized_state import CODES, SCALES
from .state_values import Value

_CODES, _SCALES = f".{CODES}", f".{SCALES}"  # ends of keys
_KINDS: dict[str, Kind] = {"int8": "signed", "uint8": "root"}  # by the codes' dtype


class Pair(NamedTuple):
    """The keys of a moment's codes and scales."""

    codes: str
    scales: str


def pair_of(moment: str) -> Pair:
    """Return the keys of a moment in 8 bits."""
    return Pair(moment + _CODES, moment + _SCALES)


def pairs_of(keys: Iterable[str]) -> dict[str, Pair]:
    """Return the moments of which some keys have both parts: `{moment: pair}`."""
    known = set(keys)
    moments = [key.removesuffix(_CODES) for key in keys if key.endswith(_CODES)]
    return {m: pair_of(m) for m in moments if pair_of(m).scales in known}


def part_of(key: str) -> tuple[str, str] | None:
    """Return the moment, and "codes" or "scales", of a key of either; or None."""
    for end in (_CODES, _SCALES):
        if key.endswith(end):
            return key.removesuffix(end), end[1:]
    return None


def is_pair(codes: Value, scales: Value, size: int) -> bool:
    """Whether two values are the codes and scales of `size` elements."""
    return (
        isinstance(codes, mx.array)
        and isinstance(scales, mx.array)
        and codes.dtype in DTYPES.values()
        and scales.dtype == mx.float32
        and codes.shape == (scales.size, BLOCK)
        and scales.shape == (scales.size,)
        and codes.size == size
    )


def kinds(dtypes: Mapping[str, str]) -> dict[str, Kind]:
    """Return how the moments are kept that a state has in 8 bits: `{moment: kind}`.

    Args:
        dtypes: the names of the dtypes of all keys of a parameter's state.
    """
    return {
        moment: _KINDS[dtypes[pair.codes]]
        for moment, pair in pairs_of(dtypes).items()
        if dtypes[pair.codes] in _KINDS
    }


def widened(
    values: Mapping[str, Value],
    shape: tuple[int, ...],
    without: Mapping[str, Kind] = MappingProxyType({}),
) -> dict[str, Value]:
    """Return the values with moments in 8 bits as float32 arrays of a shape.

    Args:
        without: moments that stay in 8 bits where they are of this kind.
    """
    result = dict(values)
    for moment, pair in pairs_of(values).items():
        if moment in without and kind_of(values[pair.codes]) == without[moment]:
            continue
        codes, scales = result.pop(pair.codes), result.pop(pair.scales)
        result[moment] = widen(codes, scales).reshape(shape)
    return result


def quantized(
    values: Mapping[str, Value], wanted: Mapping[str, Kind]
) -> dict[str, Value]:
    """Return the values with some moments in 8 bits, rounded to nearest.

    What is no array of whole blocks stays as it is: the caller then finds that it does
    not fit.
    """
    result = dict(values)
    for moment, kind in wanted.items():
        array = values.get(moment)
        if isinstance(array, mx.array) and array.size % BLOCK == 0:
            del result[moment]
            pair, blocks = pair_of(moment), quantize(array, kind)
            result[pair.codes], result[pair.scales] = blocks
    return result


def sizes(values: Mapping[str, Value]) -> list[int]:
    """Return the number of elements of each moment in 8 bits."""
    return [values[pair.codes].size for pair in pairs_of(values).values()]
