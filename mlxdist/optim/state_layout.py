"""Which arrays of state are cut: recorded when the state is made, not guessed later.

With "elements", an optimizer makes state for slices of parameters. An array of state is
either cut as its parameter is, or belongs to the whole parameter, such as a count. The
shape alone does not say: a slice of one element looks like a count of shape (1,). A
moment in 8 bits has a row of codes and a scale for each block of the slice's elements.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, NamedTuple

import mlx.core as mx

from ..arrays.blockwise import Kind
from ..arrays.dtypes import dtype_name
from ..arrays.types import Array, Flat
from ..layout.entries import Entry
from ..layout.paths import KeyPath
from ..layout.sharding import Plan
from ..layout.state_blocks import BLOCK
from . import ema, masters, moments
from .inner_optimizer import InnerOptimizer, Leaf
from .state import StateTree
from .state_values import Value, is_number, values_of

# How an array of state is cut with its parameter: an element for each element, a row of
# codes or a scale for each block of elements, or not at all.
Cut = Literal["", "elements", "codes", "scales"]

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
        cut: how it is cut with the parameter.
    """

    dtype: str
    shape: tuple[int, ...]
    cut: Cut


def cut_span(cut: Cut, start: int, stop: int) -> tuple[int, int]:
    """Return the elements of an array that go with a parameter's [start, stop)."""
    return (start // BLOCK, stop // BLOCK) if cut == "scales" else (start, stop)


def cut_shape(cut: Cut, size: int) -> tuple[int, ...]:
    """Return the shape of an array's part that goes with `size` elements."""
    if cut == "codes":
        return size // BLOCK, BLOCK
    return (size // BLOCK if cut == "scales" else size,)


Specs = dict[KeyPath, dict[str, Spec]]  # {path: {key: spec}}
Parts = dict[KeyPath, dict[str, StateArray]]  # {path: {key: part}}


def kinds_of(specs: Mapping[str, Spec]) -> dict[str, Kind]:
    """Return the moments that a parameter's state has in 8 bits."""
    return moments.kinds({key: spec.dtype for key, spec in specs.items()})


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

    def kinds(self, path: KeyPath) -> dict[str, Kind]:
        """Return the moments of a parameter that are in 8 bits here."""
        return kinds_of(self.specs.get(path, {}))

    def locate(self, path: KeyPath, key: str, value: Value) -> StateArray:
        """Return where a value of this rank lies in the whole array."""
        if is_number(value):
            return StateArray(value, (), 0, 1)
        start, stop = self.shard[path]
        shape = tuple(value.shape)
        cut = self._cut_of(path, key)
        if cut and shape == cut_shape(cut, stop - start):
            whole = self._whole_shape(path, cut)
            return StateArray(value, whole, *cut_span(cut, start, stop))
        return StateArray(value, shape, 0, math.prod(shape))

    def _cut_of(self, path: KeyPath, key: str) -> Cut:
        """Return how a value is cut, if its shape fits.

        State that `init` did not make, but an optimizer of a user's own at its first
        step, is known by its shape alone.
        """
        if self.plan.strategy != "elements":
            return ""
        spec = self.specs.get(path, {}).get(key)
        return "elements" if spec is None else spec.cut

    def _whole_shape(self, path: KeyPath, cut: Cut) -> tuple[int, ...]:
        entry = self.plan.by_path[path]
        return entry.shape if cut == "elements" else cut_shape(cut, entry.size)

    def located(self, tree: StateTree) -> Parts:
        """Locate all values of a rank's state."""
        return {
            path: {key: self.locate(path, key, value) for key, value in values.items()}
            for path, values in tree.items()
        }

    def cut(self, path: KeyPath, key: str, value: Value) -> Value:
        """Return this rank's part of a whole value."""
        cut = "" if is_number(value) else self.cut_of(path, key, tuple(value.shape))
        if not cut:
            return value
        start, stop = self.shard[path]
        first, last = cut_span(cut, start, stop)
        return value.reshape(-1)[first:last].reshape(cut_shape(cut, stop - start))

    def cut_of(self, path: KeyPath, key: str, shape: tuple[int, ...]) -> Cut:
        """Return how a whole array of this shape is cut."""
        cut = self._cut_of(path, key)
        return cut if cut and shape == self._whole_shape(path, cut) else ""


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
        cuts: dict[str, Cut] = {}
        if plan.strategy == "elements":
            cuts = _cuts(inner.owner(path), pieces[path], values)
        entry = plan.by_path[path]
        specs[path] = {
            key: _spec(value, entry, cuts.get(key, "")) for key, value in values.items()
        }
    owners = {path: inner.owner(path).at for path in plan.by_path}
    return StateLayout(plan, rank, specs, owners)


def _spec(value: Value, entry: Entry, cut: Cut) -> Spec:
    if is_number(value):
        return Spec("", (), "")
    shape = tuple(value.shape)
    if cut:
        shape = entry.shape if cut == "elements" else cut_shape(cut, entry.size)
    return Spec(dtype_name(value.dtype), shape, cut)


def _cuts(leaf: Leaf, piece: Array, values: Mapping[str, Value]) -> dict[str, Cut]:
    """Return how each key's array is cut; those that are not are left out."""
    cuts: dict[str, Cut] = dict.fromkeys(_cut_keys(leaf, piece, values), "elements")
    for codes, scales in moments.pairs_of(values).values():
        if moments.is_pair(values[codes], values[scales], piece.size):
            cuts |= {codes: "codes", scales: "scales"}
    return cuts


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
