"""Which arrays of state are cut: recorded when the state is made, not guessed later.

With "elements", an optimizer makes state for slices of parameters. An array of state is
either cut as its parameter is, or belongs to the whole parameter, such as a count. The
shape alone does not say: a slice of one element looks like a count of shape (1,).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import mlx.core as mx

from ..arrays.dtypes import dtype_name
from ..arrays.types import Array, Flat
from ..layout.entries import Entry
from ..layout.paths import KeyPath
from ..layout.sharding import Plan
from . import ema, masters
from .inner_optimizer import InnerOptimizer, Leaf
from .state import StateTree
from .state_values import Value, is_number, values_of

COPIES = frozenset({masters.KEY, masters.CORRECTION, ema.KEY})


class StateArray(NamedTuple):
    """One array of a parameter's state: the part of it on this rank.

    Attributes:
        array: elements [start, stop) of the whole array; 1-D where it is a slice. Or a
            number that is no array.
        shape: shape of the whole array.
    """

    array: Value
    shape: tuple[int, ...]
    start: int
    stop: int


class Spec(NamedTuple):
    """What `init` made for one key of a parameter's state.

    Attributes:
        dtype: its name; "" where it is a number that is no array.
        shape: of the whole array.
        is_cut: whether it has an element for each element of the parameter, so that it
            is cut as the parameter is.
    """

    dtype: str
    shape: tuple[int, ...]
    is_cut: bool


Specs = dict[KeyPath, dict[str, Spec]]  # {path: {key: spec}}
Parts = dict[KeyPath, dict[str, StateArray]]  # {path: {key: part}}


@dataclass(frozen=True)
class StateLayout:
    """What a plan's state on this rank consists of.

    Attributes:
        specs: of the state that `init` made.
        owners: for each parameter the prefix of its optimizer in MLX's state tree.
    """

    plan: Plan
    rank: int
    specs: Specs = field(default_factory=dict)
    owners: Mapping[KeyPath, str] = field(default_factory=dict)

    @cached_property
    def shard(self) -> dict[KeyPath, tuple[int, int]]:
        """`{path: (start, stop)}`: the elements whose state this rank has."""
        return self.plan.shard(self.rank)

    def locate(self, path: KeyPath, key: str, value: Value) -> StateArray:
        """Return where a value of this rank lies in the whole array."""
        if is_number(value):
            return StateArray(value, (), 0, 1)
        start, stop = self.shard[path]
        shape = tuple(value.shape)
        if self._is_cut(path, key, shape, stop - start):
            return StateArray(value, self.plan.by_path[path].shape, start, stop)
        return StateArray(value, shape, 0, math.prod(shape))

    def _is_cut(
        self, path: KeyPath, key: str, shape: tuple[int, ...], length: int
    ) -> bool:
        """Whether a value of this rank is a slice.

        State that `init` did not make, but an optimizer of a user's own at its first
        step, is known by its shape alone.
        """
        if self.plan.strategy != "elements" or shape != (length,):
            return False
        spec = self.specs.get(path, {}).get(key)
        return True if spec is None else spec.is_cut

    def located(self, tree: StateTree) -> Parts:
        """Locate all values of a rank's state."""
        return {
            path: {key: self.locate(path, key, value) for key, value in values.items()}
            for path, values in tree.items()
        }

    def cut(self, path: KeyPath, key: str, value: Value) -> Value:
        """Return this rank's part of a whole value."""
        if is_number(value) or not self.cuts(path, key, tuple(value.shape)):
            return value
        start, stop = self.shard[path]
        return value.reshape(-1)[start:stop]

    def cuts(self, path: KeyPath, key: str, shape: tuple[int, ...]) -> bool:
        """Whether a whole array of this shape is cut."""
        spec = self.specs.get(path, {}).get(key)
        if self.plan.strategy != "elements" or shape != self.plan.by_path[path].shape:
            return False
        return True if spec is None else spec.is_cut


def record(
    inner: InnerOptimizer, plan: Plan, rank: int, pieces: Flat, tree: StateTree
) -> StateLayout:
    """Record a state that was just made.

    Args:
        pieces: this rank's parameters or slices, as the optimizer saw them.
        tree: the state that it made of them.
    """
    specs: Specs = {}
    for path, values in tree.items():
        cut_keys: frozenset[str] = frozenset()
        if plan.strategy == "elements":
            cut_keys = _cut_keys(inner.owner(path), pieces[path], values)
        entry = plan.by_path[path]
        specs[path] = {
            key: _spec(value, entry, is_cut=key in cut_keys)
            for key, value in values.items()
        }
    owners = {path: inner.owner(path).at for path in plan.by_path}
    return StateLayout(plan, rank, specs, owners)


def _spec(value: Value, entry: Entry, *, is_cut: bool) -> Spec:
    if is_number(value):
        return Spec("", (), is_cut=False)
    shape = entry.shape if is_cut else tuple(value.shape)
    return Spec(dtype_name(value.dtype), shape, is_cut)


def _cut_keys(leaf: Leaf, piece: Array, values: Mapping[str, Value]) -> frozenset[str]:
    """Return the keys of the arrays that are cut with a parameter."""
    slices = frozenset(
        key
        for key, value in values.items()
        if not is_number(value) and value.shape == piece.shape
    )
    if leaf.is_known or slices <= COPIES:
        return slices
    grown = _growing_keys(leaf, mx.zeros(piece.size + 1, piece.dtype))
    return slices if grown is None else slices & (grown | COPIES)


def _growing_keys(leaf: Leaf, probe: Array) -> set[str] | None:
    """Return the keys of arrays that are as long as the parameter, whatever its length.

    Makes state for a parameter of another length, which is dropped unevaluated. None
    where the optimizer makes its state elsewhere than in `init_single`.
    """
    state: dict[str, Value] = {}
    random: Array = mx.random.state
    high, low = random[0].tolist()
    try:
        leaf.optimizer.init_single(probe, state)
    except NotImplementedError:
        return None
    if random[0].tolist() != [high, low]:
        mx.random.seed((high << 32) | low)  # a seed's halves are its key in MLX
    values = values_of(state)
    return {
        key
        for key, value in values.items()
        if not is_number(value) and value.shape == probe.shape
    }
