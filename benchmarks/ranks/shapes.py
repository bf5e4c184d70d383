"""Shapes of a model's tensors, from the name of its size."""

from __future__ import annotations

import re
from collections.abc import Iterator

Shapes = dict[str, tuple[int, ...]]


def shapes_of(tensors: str) -> Shapes:
    """Return the tensors that a name stands for, by path.

    "50M" is a transformer of about 50 million parameters: an embedding, and layers of
    query-key-value, output and MLP matrices with two vectors of norms each. "2000x1000"
    is 2000 tensors of 1000 elements.

    Raises:
        ValueError: the name is neither.
    """
    if match := re.fullmatch(r"(\d+)x(\d+)", tensors):
        count, size = map(int, match.groups())
        return {f"layers.{index}.weight": (size,) for index in range(count)}
    if match := re.fullmatch(r"(\d+)([KM])", tensors):
        return dict(_transformer(int(match[1]) * {"K": 10**3, "M": 10**6}[match[2]]))
    raise ValueError(f"found tensors {tensors!r}, wanted such as 50M or 2000x1000")


def _transformer(parameters: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield layers with three quarters of the parameters, and an embedding.

    Larger models have wider layers.
    """
    width = 64 * max(1, round((3 * parameters) ** (1 / 3) / 64))
    layer = 12 * width**2 + 2 * width
    layers = max(1, round(0.75 * parameters / layer))
    rows = max(1, round((parameters - layers * layer - width) / width))
    yield "embedding.weight", (rows, width)
    for index in range(layers):
        yield f"layers.{index}.attention.qkv.weight", (3 * width, width)
        yield f"layers.{index}.attention.out.weight", (width, width)
        yield f"layers.{index}.attention.norm.weight", (width,)
        yield f"layers.{index}.mlp.up.weight", (4 * width, width)
        yield f"layers.{index}.mlp.down.weight", (width, 4 * width)
        yield f"layers.{index}.mlp.norm.weight", (width,)
    yield "norm.weight", (width,)
