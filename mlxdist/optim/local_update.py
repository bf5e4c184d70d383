"""The wrapped optimizer's step on this rank's shard, bucket by bucket.

MLX's `apply_gradients` steps a whole tree at once. Here the pieces of one bucket are
stepped at a time, so that a bucket can be on its way to the other ranks while the next
one is computed, and so that one bucket's memory is enough for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import mlx.core as mx

from ..arrays.concat import Chunk
from ..arrays.tree_index import TreeIndex
from ..arrays.trees import cut_all, leaves_of
from ..arrays.types import Array, Flat, Pieces
from ..comm.wire import Wire
from ..layout.paths import KeyPath
from ..layout.sharding import Piece
from . import ema
from .fused_step import FusedStep, PieceStep, State, fitted, scaled, select
from .inner_optimizer import InnerOptimizer, Leaf
from .weight_copies import WeightCopies

Stepped = list[tuple[int, Chunk]]  # (index of the bucket, its new pieces)


class ShardStep(Protocol):
    """One step under way."""

    def add(self, index: int, mean: Chunk) -> Stepped:
        """Take the mean gradients of a bucket; return the buckets that are stepped."""

    def unpublished(self) -> list[Array]:
        """After the step: arrays of state on which no new parameter depends.

        Unless they are evaluated, each step's would hold those of all steps before.
        """


class LocalUpdate(Protocol):
    """How the wrapped optimizer steps this rank's shard.

    Attributes:
        is_compiled: whether it runs compiled kernels.
    """

    @property
    def is_compiled(self) -> bool: ...

    def begin(self, parameters: Flat, scale: Array | None) -> ShardStep:
        """Step the schedules, and begin a step.

        Args:
            parameters: whole ones, by path; each is dropped once it was used.
            scale: factor on the gradients, to clip and unscale them.
        """


def make_local_update(
    inner: InnerOptimizer, wire: Wire, copies: WeightCopies, *, compiled: bool
) -> LocalUpdate:
    """Return the update for a wrapped optimizer: a class of a user's own that does more
    than MLX in `apply_gradients` gets whole trees."""
    if any(leaf.steps_whole_trees for leaf in inner.leaves):
        return WholeTreeUpdate(inner, wire, copies)
    return BucketUpdate(inner, wire, copies, compiled=compiled)


class _Shard:
    """This rank's pieces, and the optimizer's state of them by path."""

    def __init__(self, inner: InnerOptimizer, wire: Wire, copies: WeightCopies):
        self.inner = inner
        self.wire = wire
        self.copies = copies
        # The plan's own path objects: a lookup of an equal one takes longer.
        paths = {p.entry.path: p.entry.path for bucket in wire.pieces for p in bucket}
        self._states = [
            (leaf, TreeIndex(paths[path] for path in leaf.paths if path in paths))
            for leaf in inner.leaves
        ]

    def initialize(self, parameters: Flat) -> None:
        """Make state where a user has put in one that lacks it, as MLX does."""
        if not self.inner.is_initialized:
            local = cut_all(parameters, self.wire.pieces, self.wire.plan)
            self.inner.init(self.copies.masters.widened(local))

    def unpublished(self) -> list[Array]:
        arrays = self.inner.scalars()
        has_ema = self.copies.ema.decay is not None
        for leaf, index in self._states:
            if has_ema or not leaf.is_of_mlx:
                states = index.flat(leaf.optimizer.state).values()
                arrays += [a for state in states for a in self._later(leaf, state)]
        return arrays

    def _later(self, leaf: Leaf, state: State) -> list[Array]:
        """The EMA weights; of a user's own optimizer all state."""
        if leaf.is_of_mlx:
            return [state[ema.KEY]] if ema.KEY in state else []
        return [a for a in leaves_of(state).values() if isinstance(a, mx.array)]

    def states(self) -> dict[KeyPath, State]:
        found: dict[KeyPath, State] = {}
        for leaf, index in self._states:
            found.update(index.flat(leaf.optimizer.state))
        return found


class BucketUpdate:
    """Steps bucket by bucket."""

    def __init__(
        self,
        inner: InnerOptimizer,
        wire: Wire,
        copies: WeightCopies,
        *,
        compiled: bool,
    ):
        self.shard = _Shard(inner, wire, copies)
        self.steps = [
            _BucketStep(self.shard, b, compiled=compiled) for b in wire.pieces
        ]

    @property
    def is_compiled(self) -> bool:
        return all(step.is_compiled for step in self.steps)

    def begin(self, parameters: Flat, scale: Array | None) -> ShardStep:
        self.shard.initialize(parameters)
        for leaf in self.shard.inner.leaves:
            leaf.tick()
        return _BucketUpdateStep(self, parameters, self.shard.states(), scale)


class _BucketUpdateStep(NamedTuple):
    update: BucketUpdate
    parameters: Flat
    states: dict[KeyPath, State]
    scale: Array | None

    def add(self, index: int, mean: Chunk) -> Stepped:
        bucket = self.update.shard.wire.pieces[index]
        parameters = [self.parameters.pop(piece.entry.path) for piece in bucket]
        states = [self.states[piece.entry.path] for piece in bucket]
        step = self.update.steps[index]
        stepped = step(mean, parameters, states, self.scale)
        if isinstance(stepped, Chunk):
            return [(index, stepped)]
        return [(index, self.update.shard.wire.stepped_chunk(index, stepped))]

    def unpublished(self) -> list[Array]:
        return self.update.shard.unpublished()


class _BucketStep:
    """The step of all leaves on one bucket."""

    def __init__(self, shard: _Shard, bucket: Sequence[Piece], *, compiled: bool):
        strategy = shard.wire.plan.strategy
        groups = _by_leaf(shard.inner, bucket)
        self._steps = [
            (
                indices,
                PieceStep(
                    leaf,
                    strategy,
                    [bucket[index] for index in indices],
                    shard.copies,
                    compiled=compiled,
                ),
            )
            for leaf, indices in groups
        ]
        self.is_compiled = all(step.is_compiled for _, step in self._steps)
        self._fused: FusedStep | None = None
        is_one = len(bucket) > 1 and len(groups) == 1
        if compiled and is_one and groups[0][0].can_be_compiled:
            self._fused = FusedStep(groups[0][0], strategy, bucket, shard.copies)

    def __call__(
        self,
        mean: Chunk,
        parameters: Pieces,
        states: Sequence[State],
        scale: Array | None,
    ) -> Chunk | Pieces:
        if self._fused is not None:
            return self._fused(mean, parameters, states, scale)
        gradients = mean.pieces()
        stepped: Pieces = [None] * len(gradients)
        for indices, step in self._steps:
            new = step(
                select(gradients, indices),
                select(parameters, indices),
                select(states, indices),
                scale,
            )
            for index, piece in zip(indices, new, strict=True):
                stepped[index] = piece
        return stepped


def _by_leaf(
    inner: InnerOptimizer, bucket: Sequence[Piece]
) -> list[tuple[Leaf, list[int]]]:
    groups: dict[str, list[int]] = {}
    for index, piece in enumerate(bucket):
        groups.setdefault(inner.owner(piece.entry.path).at, []).append(index)
    return [(leaf, groups[leaf.at]) for leaf in inner.leaves if leaf.at in groups]


class WholeTreeUpdate:
    """Waits for all buckets, and calls the optimizer's `apply_gradients` once."""

    is_compiled = False

    def __init__(self, inner: InnerOptimizer, wire: Wire, copies: WeightCopies):
        self.shard = _Shard(inner, wire, copies)

    def begin(self, parameters: Flat, scale: Array | None) -> ShardStep:
        shard = self.shard
        shard.initialize(parameters)
        local = cut_all(parameters, shard.wire.pieces, shard.wire.plan)
        parameters.clear()
        return _WholeTreeStep(shard, local, scale)


class _WholeTreeStep:
    def __init__(self, shard: _Shard, parameters: Flat, scale: Array | None):
        self._shard = shard
        self._parameters = parameters
        self._scale = scale
        self._means: Flat = {}
        self._buckets_left = len(shard.wire.pieces)

    def add(self, index: int, mean: Chunk) -> Stepped:
        bucket = self._shard.wire.pieces[index]
        for piece, gradient in zip(bucket, mean.pieces(), strict=True):
            path = piece.entry.path
            dtype = self._shard.copies.update_dtype(self._parameters[path].dtype)
            self._means[path] = scaled(gradient, dtype, self._scale)
        self._buckets_left -= 1
        return [] if self._buckets_left else self._step()

    def unpublished(self) -> list[Array]:
        return self._shard.unpublished()

    def _step(self) -> Stepped:
        shard, local = self._shard, self._parameters
        states, copies = shard.states(), shard.copies
        masters = {p: copies.masters.current(local[p], states[p]) for p in local}
        stepped = shard.inner.apply_gradients(self._means, masters)
        states = shard.states()  # the optimizer may have made new dicts
        for path, parameter in masters.items():
            optimizer = shard.inner.owner(path).optimizer
            stepped[path] = fitted(stepped.get(path), parameter, path, optimizer)
        settled = {p: copies.settle(stepped[p], local[p], states[p]) for p in local}
        return [
            (
                index,
                shard.wire.stepped_chunk(
                    index, [settled[piece.entry.path] for piece in bucket]
                ),
            )
            for index, bucket in enumerate(shard.wire.pieces)
        ]
