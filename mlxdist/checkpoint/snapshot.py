"""What a rank has to save, and what it is called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx.nn import Module
from mlx.utils import tree_flatten

from ..arrays.trees import entries_of
from ..arrays.types import Array, Flat, Tree
from ..layout.entries import path_key
from ..optim import inner as wrapped
from . import user_data as extra
from .manifest import Leaf

Identity = tuple[str, str, str]


@dataclass
class Snapshot:
    """What this rank has to save, evaluated.

    Attributes:
        every: what all ranks hold, beginning with what is trained.
        own: what the optimizer holds, by kind: this rank's share where it is sharded.
        buffers: paths of parameters that are not trained; ranks may differ in them.
    """

    every: dict[Identity, Array]
    own: dict[str, Any]
    buffers: list[str]
    extra: Any
    sampler: dict[str, Any] | None


def flat_parameters(model: Tree) -> Flat:
    """All arrays of a model, frozen ones and buffers too, sorted by path."""
    tree = model.parameters() if isinstance(model, Module) else model
    flat = dict(tree_flatten(tree))
    return {entry.path: flat[entry.path] for entry in entries_of(tree)}


def places(optimizer: Any, at: str = "") -> list[tuple[str, Any]]:
    """The optimizers that hold state, and where MLX's state tree has each one's."""
    inner = getattr(optimizer, "optimizers", None)
    if inner is None:
        return [(at, optimizer)]
    return [
        place
        for index, one in enumerate(inner)
        for place in places(one, f"{at}states.{index}.")
    ]


def scalars(optimizer: Any) -> dict[Identity, Array]:
    """Step, learning rate and the like of each optimizer that holds state."""
    return {
        ("scalars", at.rstrip("."), name): value
        for at, leaf in places(optimizer)
        for name, value in sorted(leaf.state.items())
        if isinstance(value, mx.array)
    }


def snapshot(model: Tree, optimizer: Any, user: Any, sampler: Any) -> Snapshot:
    """Raises ValueError where something can't be saved."""
    parameters = flat_parameters(model)
    every: dict[Identity, Array] = {
        ("parameters", path, ""): array for path, array in parameters.items()
    }
    every |= scalars(optimizer._inner)
    own = optimizer._saved()
    # All at once and on all ranks alike: some may wait for a collective.
    mx.eval(list(every.values()), own)
    trained = optimizer._require_plan().by_path
    encoded, arrays = extra.encode(user)
    every |= {("extra", path, ""): array for path, array in arrays.items()}
    if not optimizer._plan.sharded:
        every |= {
            (kind, path, key): array
            for kind, tree in own.items()
            for path, held in tree.items()
            for key, array in held.items()
        }
        own = {}
    place = None if sampler is None else sampler.state_dict()
    buffers = [path for path in parameters if path not in trained]
    return Snapshot(every, own, buffers, encoded, place)


def leaves_of(optimizer: Any) -> tuple[Leaf, ...]:
    """The optimizers that hold state, as a manifest names them."""
    paths: dict[int, list[str]] = {}
    for path in sorted(optimizer._require_plan().by_path, key=path_key):
        paths.setdefault(id(wrapped.owner_of(optimizer._inner, path)), []).append(path)
    return tuple(
        Leaf(
            at,
            f"{type(leaf).__module__}.{type(leaf).__qualname__}",
            tuple(wrapped.settings(leaf)),
            tuple(paths.get(id(leaf), ())),
        )
        for at, leaf in places(optimizer._inner)
    )
