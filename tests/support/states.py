"""States of optimizers as users save and assign them."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
import pytest
from mlx.utils import tree_flatten, tree_unflatten

import mlxdist
from tests.support.examples import apply_steps, distributed

before_and_after_init = pytest.mark.parametrize("before_init", [True, False])


def saved(state: Any) -> Any:
    """Return a state as it comes back from a file, flattened and nested again."""
    flat = [(path, mx.array(leaf)) for path, leaf in tree_flatten(state)]
    return tree_unflatten(flat)


def trained(
    world: mlxdist.World,
    tree: Any,
    inner: optim.Optimizer | None = None,
    **options: Any,
) -> mlxdist.DistributedOptimizer:
    """Return an optimizer after two steps with other gradients on each rank."""
    optimizer = distributed(world, inner, **options)
    optimizer.init(tree)
    apply_steps(optimizer, tree, range(2), world.rank)
    return optimizer


def assign(
    optimizer: mlxdist.DistributedOptimizer, state: Any, tree: Any, before_init: bool
) -> None:
    """Assign a state before or after init."""
    if not before_init:
        optimizer.init(tree)
    optimizer.state = state
    if before_init:
        optimizer.init(tree)
