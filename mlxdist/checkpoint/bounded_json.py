"""Parsing of JSON from files that are not trusted, in bounded time and memory."""

from __future__ import annotations

import json

from .manifest import Json

MAX_BYTES = 64 * 2**20  # a manifest of 5,000 arrays on 1,024 ranks has about 5 MB
MAX_VALUES = 2**22  # each takes up to 250 bytes in memory


def parse(data: bytes) -> Json:
    """Parse JSON.

    Raises:
        ValueError: if it is not valid, too large, or nested too deeply.
    """
    if len(data) > MAX_BYTES:
        raise ValueError(f"it has {len(data)} bytes, more than {MAX_BYTES}")
    if sum(map(data.count, (b",", b"[", b"{"))) > MAX_VALUES:
        raise ValueError(f"it has more than {MAX_VALUES} values")
    try:
        return json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is not JSON: {error}") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
