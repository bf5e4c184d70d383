"""Models without layers, only tensors, and their gradients."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map, tree_unflatten

from ranks.shapes import shapes_of


def make_model(tensors: str, dtype: str) -> nn.Module:
    """Return a module with these tensors, which are equal in every process."""
    flat = []
    for path, shape in shapes_of(tensors).items():
        count = mx.arange(math.prod(shape), dtype=mx.float32)
        values = (0.02 * mx.sin(count)).reshape(shape).astype(getattr(mx, dtype))
        mx.eval(values)  # one by one, for the sake of memory
        flat.append((path, values))
    return _as_module(tree_unflatten(flat))


def _as_module(tree: Any) -> Any:
    if isinstance(tree, list):
        return [_as_module(each) for each in tree]
    if not isinstance(tree, dict):
        return tree
    module = nn.Module()
    for name, each in tree.items():
        setattr(module, name, _as_module(each))
    return module


def fresh_gradients(model: nn.Module, number: int, rank: int) -> Any:
    """Return evaluated gradients in new arrays, as a backward pass leaves them."""
    scale = 1.0 + 0.25 * (number % 5) + 0.5 * rank
    gradients = tree_map(lambda p: p * scale, model.trainable_parameters())
    mx.eval(gradients)
    return gradients
