"""What MLX's own optimizer tests use, for a wrapped optimizer on N ranks."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import pytest
from mlx.utils import tree_map

import mlxdist

from .examples import CLASSES, distributed, shard_modes

# MLX's tests construct every class with one argument; a MultiOptimizer takes others.
SINGLE = [name for name in CLASSES if name != "MultiOptimizer"]

each_class = pytest.mark.parametrize(
    ("name", "shard"),
    [
        pytest.param(name, shard, id=f"{name}-{shard}")
        for name in SINGLE
        for shard in shard_modes(name)
    ],
)


def wrap(
    world: mlxdist.World, name: str, shard: Any = False, **arguments: Any
) -> mlxdist.DistributedOptimizer:
    """Return a wrapped optimizer of an MLX class."""
    return distributed(world, CLASSES[name](**arguments), shard=shard)


def small_tree(dtype: Any = mx.float32) -> dict[str, Any]:
    """Return the tree of parameters that most of MLX's tests update: zeros."""
    return {
        "first": [mx.zeros((10,), dtype), mx.zeros((1,), dtype)],
        "second": mx.zeros((1,), dtype),
    }


def around(tree: Any, world: mlxdist.World) -> Any:
    """Return gradients of this rank whose mean over the ranks is exactly `tree`."""
    offset = 2 * world.rank - (world.size - 1)
    return tree_map(lambda leaf: leaf + mx.array(offset, leaf.dtype), tree)


def ones_around(tree: Any, world: mlxdist.World) -> Any:
    """Return gradients of this rank whose mean is one everywhere."""
    return around(tree_map(mx.ones_like, tree), world)


def all_true(function: Any, tree: Any, *others: Any) -> bool:
    """Return whether `function` is true for the leaves at each path of `tree`."""
    results: list[bool] = []
    tree_map(lambda *leaves: results.append(bool(function(*leaves))), tree, *others)
    return bool(results) and all(results)


class Branches(nn.Module):
    """A model with a list that has modules without parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.l1 = nn.Linear(2, 2)
        self.drop = nn.Dropout(p=0.5)
        self.l2 = nn.Linear(2, 2)
        self.vals = [nn.Linear(2, 2), nn.ReLU(), nn.ReLU()]


def branches(world: mlxdist.World) -> Branches:
    """Return the model with the same parameters on all ranks."""
    return world.broadcast(Branches())


def matrices_and_biases() -> optim.MultiOptimizer:
    """Return Adam for matrices and SGD for the rest."""
    return optim.MultiOptimizer(
        [optim.Adam(learning_rate=0.001), optim.SGD(learning_rate=0.1)],
        [lambda path, weight: weight.ndim > 1],
    )
