"""The optimizer's side of a checkpoint: plan, arrays, scalars and counters.

This is all that `checkpoint/` knows of a `DistributedOptimizer`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import mlx.core as mx

from ..arrays.types import Array
from ..layout.entries import path_key
from ..layout.sharding import Plan
from ..world.world import World
from . import inner as inner_optimizer
from . import state
from .checks import state_scalars
from .masters import AVERAGE, MASTER

if TYPE_CHECKING:
    from .optimizer import DistributedOptimizer


class LeafOptimizer(NamedTuple):
    """One MLX optimizer that holds state: the only one, or one of a MultiOptimizer's.

    Attributes:
        at: prefix of its part of MLX's state tree: "" or "states.0.".
        name: module and class.
        settings: hyperparameters, as text.
        paths: the parameters that it updates, in order.
    """

    at: str
    name: str
    settings: tuple[str, ...]
    paths: tuple[str, ...]


class StateArray(NamedTuple):
    """One array of a parameter's state: the part of it on this rank.

    Attributes:
        array: elements [start, stop) of the whole array; 1-D where it is a slice.
        shape: shape of the whole array.
    """

    array: Array
    shape: tuple[int, ...]
    start: int
    stop: int


class NewArray(NamedTuple):
    """Elements [start, stop) of a saved array that this rank takes, and their shape."""

    start: int
    stop: int
    shape: tuple[int, ...]


class ResumableState:
    """A live view of an initialized optimizer: reads and replaces its arrays."""

    def __init__(self, optimizer: DistributedOptimizer):
        self._optimizer = optimizer
        self._inner = optimizer._inner
        self.plan: Plan = optimizer._require_plan()
        self.world: World = optimizer.world

    @property
    def summary(self) -> list[str]:
        """Lines that are the same on all ranks of a healthy job."""
        steps = f"{self._optimizer._updates} steps done"
        return [steps, *self.plan.lines, *state_scalars(self._inner)]

    @property
    def leaves(self) -> tuple[LeafOptimizer, ...]:
        """The optimizers that hold state, in MLX's order."""
        paths: dict[int, list[str]] = {}
        for path in sorted(self.plan.by_path, key=path_key):
            owner = inner_optimizer.owner_of(self._inner, path)
            paths.setdefault(id(owner), []).append(path)
        return tuple(
            LeafOptimizer(
                at,
                f"{type(leaf).__module__}.{type(leaf).__qualname__}",
                tuple(inner_optimizer.settings(leaf)),
                tuple(paths.get(id(leaf), ())),
            )
            for at, leaf in _places(self._inner)
        )

    def scalars(self) -> dict[tuple[str, str], Array]:
        """`{(at, name): array}`: step, learning rate and the like of each leaf."""
        return {
            (at, name): value
            for at, leaf in _places(self._inner)
            for name, value in sorted(leaf.state.items())
            if isinstance(value, mx.array)
        }

    def arrays(self) -> dict[str, dict[str, StateArray]]:
        """`{path: {key: array}}` of the parameters whose state is on this rank."""
        shard = self.plan.shard(self.world.rank)
        return {
            path: {key: self._located(path, a, shard[path]) for key, a in keys.items()}
            for path, keys in state.read(self._inner, shard).items()
        }

    def counters(self) -> dict[str, int]:
        """The wrapper's own counts: steps, skipped steps, loss scale."""
        return self._optimizer._counters()

    def may_lack(self, key: str) -> bool:
        """Whether a checkpoint may lack this key: it follows from the parameters."""
        return key == MASTER

    def accept_new(
        self, path: str, key: str, shape: tuple[int, ...]
    ) -> NewArray | None:
        """Elements of a saved array that this rank takes although it lacks that key.

        A user's own optimizer may create state at its first step only. None where this
        rank holds no state for `path`, or where an optimizer of MLX does, which has all
        its state from the start.
        """
        owner = type(inner_optimizer.owner_of(self._inner, path))
        shard = self.plan.shard(self.world.rank)
        known = owner.__module__.startswith("mlx.") or key in (MASTER, AVERAGE)
        if known or path not in shard:
            return None
        if self.plan.strategy == "elements" and shape == self.plan.by_path[path].shape:
            start, stop = shard[path]
            return NewArray(start, stop, (stop - start,))
        return NewArray(0, math.prod(shape), shape)

    def put_scalar(self, at: str, name: str, array: Array) -> None:
        """Replace a leaf's step, learning rate or the like."""
        dict(_places(self._inner))[at].state[name] = array

    def put(self, path: str, key: str, array: Array) -> None:
        """Replace this rank's part of an array of state, as `arrays` located it."""
        state.write(self._inner, {path: {key: array}})

    def put_counters(self, counters: dict[str, int]) -> None:
        """Restore what `counters` returned. Called last."""
        self._optimizer._restore_counters(counters)

    def _located(self, path: str, array: Array, span: tuple[int, int]) -> StateArray:
        entry = self.plan.by_path[path]
        is_slice = (
            self.plan.strategy == "elements"
            and array.ndim == 1
            and array.size == span[1] - span[0]
        )
        if is_slice:
            return StateArray(array, entry.shape, *span)
        return StateArray(array, tuple(array.shape), 0, array.size)


def _places(optimizer: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    parts = getattr(optimizer, "optimizers", None)
    if parts is None:
        yield at, optimizer
        return
    for index, part in enumerate(parts):
        yield from _places(part, f"{at}states.{index}.")
