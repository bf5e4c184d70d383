"""The optimizer's side of a checkpoint: plan, arrays, scalars and counters.

This is all that `checkpoint/` knows of a `DistributedOptimizer`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from ..arrays.types import Array
from ..layout.paths import KeyPath
from ..layout.sharding import Plan
from ..layout.wording import counted
from ..world.world import World
from . import state
from .accumulation import MicroBatches
from .inner_optimizer import InnerOptimizer, Leaf
from .loss_scale import LossScale
from .masters import CORRECTION, KEY, MasterWeights
from .state_layout import COPIES, StateLayout
from .state_layout import StateArray as StateArray
from .state_values import Value, as_array, is_number, like


@dataclass
class StepCounts:
    """Steps taken, and steps skipped where gradients were not finite.

    Attributes:
        torn: why a step was taken in part, until all ranks have one state again.
        broken: why this rank can't exchange anything any more.
        ended: the error that ended the last attempt at a step on this rank.
    """

    steps: int = 0
    skipped: int = 0
    torn: str | None = None
    broken: str | None = None
    ended: str | None = None

    def refuse_broken(self) -> None:
        """Raise RuntimeError where a collective would wait for ever."""
        if self.broken is not None:
            raise RuntimeError(self.broken)

    def refuse_torn(self) -> None:
        """Raise ValueError where a step was taken in part."""
        self.refuse_broken()
        if self.torn is not None:
            raise ValueError(self.torn)


class LeafOptimizer(NamedTuple):
    """One MLX optimizer that holds state: the only one, or one of a MultiOptimizer's.

    Attributes:
        at: prefix of its part of MLX's state tree: "" or "states.0.".
        name: module and class.
        settings: hyperparameters, as text.
        paths: texts of the paths that it updates, in order.
    """

    at: str
    name: str
    settings: tuple[str, ...]
    paths: tuple[str, ...]


class NewArray(NamedTuple):
    """The part of a saved array that this rank takes: elements [start, stop).

    Attributes:
        shape: of the part; 1-D where it is a slice.
    """

    start: int
    stop: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ResumableState:
    """A live view of an initialized optimizer: reads and replaces its arrays."""

    world: World
    layout: StateLayout
    inner: InnerOptimizer
    counts: StepCounts
    loss_scale: LossScale
    micro_batches: MicroBatches
    masters: MasterWeights

    @property
    def plan(self) -> Plan:
        """Buckets and owners."""
        return self.layout.plan

    @property
    def summary(self) -> list[str]:
        """Lines that are the same on all ranks of a healthy job."""
        steps = f"{counted(self.counts.steps, 'step')} done"
        return [steps, *self.plan.lines, *self.inner.scalar_lines()]

    @property
    def leaves(self) -> tuple[LeafOptimizer, ...]:
        """The optimizers that hold state, in MLX's order."""
        return tuple(
            LeafOptimizer(
                leaf.at,
                leaf.name,
                tuple(leaf.settings()),
                tuple(path.text for path in sorted(leaf.paths)),
            )
            for leaf in self.inner.leaves
        )

    def scalars(self) -> dict[tuple[str, str], Array]:
        """`{(at, name): array}`: step, learning rate and the like of each leaf."""
        return {
            (leaf.at, name): value
            for leaf in self.inner.leaves
            for name, value in leaf.scalars().items()
        }

    def arrays(self) -> dict[KeyPath, dict[str, StateArray]]:
        """`{path: {key: array}}` of the parameters whose state is on this rank.

        Numbers are arrays without dimensions. A None is left out: it is no state yet.

        Raises:
            ValueError: on text, which no array can hold.
        """
        located = self.layout.located(state.read(self.inner, self.layout.shard))
        return {
            path: {
                key: part._replace(array=_as_array(path, key, part.array))
                for key, part in keys.items()
                if part.array is not None
            }
            for path, keys in located.items()
        }

    def holds_number(self, path: KeyPath, key: str) -> bool:
        """Whether a value of a parameter's state is a number, and no array."""
        return is_number(state.read(self.inner, [path])[path][key])

    def may_lack(self, key: str) -> bool:
        """Whether a checkpoint may lack this key: it follows from the parameters."""
        return key in (KEY, CORRECTION)

    @property
    def master_key(self) -> str:
        """The key of what is kept of masters."""
        return self.masters.key

    def accept_new(
        self, path: KeyPath, key: str, shape: tuple[int, ...]
    ) -> NewArray | None:
        """Return the part of a saved array that this rank takes, though it lacks `key`.

        A user's own optimizer may create state at its first step only. None where this
        rank holds no state for `path`, or where an optimizer of MLX does, which has all
        its state from the start.

        Args:
            shape: of the saved array.
        """
        shard = self.layout.shard
        if path not in shard or key in COPIES:
            return None
        if self.inner.owner(path).is_mlx_class:
            return None
        if self.layout.cut_of(path, key, shape):
            start, stop = shard[path]
            return NewArray(start, stop, (stop - start,))
        return NewArray(0, math.prod(shape), shape)

    def scalar_like(self, at: str, name: str, array: Array) -> Value:
        """Return a saved array as the leaf's step, learning rate or the like.

        Raises:
            ValueError, OverflowError: if its number is none of that dtype.
        """
        return state.scalar_like(self._leaf_at(at), name, array)

    def put_scalar(self, at: str, name: str, value: Value) -> None:
        """Replace a leaf's step, learning rate or the like, by what is like it."""
        self._leaf_at(at).optimizer.state[name] = value

    def _leaf_at(self, at: str) -> Leaf:
        return next(leaf for leaf in self.inner.leaves if leaf.at == at)

    def put(self, path: KeyPath, key: str, array: Array) -> None:
        """Replace this rank's part of an array of state, as `arrays` located it."""
        before = state.read(self.inner, [path]).get(path, {})
        value = like(before.get(key, array), array)
        state.write(self.inner, {path: {key: value}})

    def counters(self) -> dict[str, int]:
        """Counts that are the same on all ranks: steps, skipped steps, loss scale."""
        counts = {"updates": self.counts.steps, "skipped": self.counts.skipped}
        return counts | self.loss_scale.counters()

    def check_counters(self, counters: dict[str, int]) -> None:
        """Raise ValueError if `put_counters` can't restore them."""
        self.loss_scale.check(counters)

    def put_counters(self, counters: dict[str, int]) -> None:
        """Restore what `counters` returned. Called last."""
        self.counts.steps = counters.get("updates", 0)
        self.counts.skipped = counters.get("skipped", 0)
        self.loss_scale.restore(counters)
        self.counts.torn = self.counts.ended = None
        self.micro_batches.drop()


def _as_array(path: KeyPath, key: str, value: Value) -> Array:
    try:
        return as_array(value)
    except ValueError as error:
        raise ValueError(f"the state {key} of {path} can't be saved: {error}") from None
