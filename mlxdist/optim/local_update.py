"""The wrapped optimizer's step on this rank's shard, bucket by bucket.

MLX's `apply_gradients` steps a whole tree at once. Here the pieces of one bucket are
stepped at a time, so that a bucket can be on its way to the other ranks while the next
one is computed, and so that one bucket's memory is enough for all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from ..arrays import device
from ..arrays.concat import Chunk
from ..arrays.types import Array, Flat, Pieces
from ..comm.gather import Slot
from ..comm.wire import Wire
from ..layout.paths import KeyPath
from ..layout.sharding import Piece
from . import compilation
from .fused_step import FusedStep, can_be_fused, select
from .inner_optimizer import InnerOptimizer, Leaf
from .local_shard import LocalShard, Stepped
from .part_step import PartStep
from .piece_step import PieceStep
from .quantized_step import Moments, State
from .random_draws import RandomDraws
from .rollback import SavedStates
from .weight_copies import WeightCopies
from .whole_tree_update import WholeTreeUpdate


class ShardStep(Protocol):
    """One step under way."""

    def add(self, index: int, mean: Chunk, slot: Slot | None = None) -> Stepped:
        """Take the mean gradients of a bucket; return the buckets that are stepped.

        Args:
            slot: where the bucket's parameter is, if it is one that may be overwritten.
        """

    def undo(self) -> bool:
        """After an error: put back the state of what was not handed on.

        Returns:
            False where a part of it is stepped and can't be put back.
        """

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

    def unchanged(self, index: int, parameters: Flat) -> Stepped:
        """What a step's `add` returns for a bucket, with parameters as they are."""

    def begin(self, parameters: Flat, scale: Array | None) -> ShardStep:
        """Step the schedules, and begin a step.

        Args:
            parameters: whole ones, by path; each is dropped once it was used.
            scale: factor on the gradients, to clip and unscale them.
        """


def make_local_update(
    inner: InnerOptimizer,
    wire: Wire,
    copies: WeightCopies,
    *,
    compiled: bool = False,
    traced: bool = False,
) -> LocalUpdate:
    """Return the update for a wrapped optimizer: a class of a user's own that does more
    than MLX in `apply_gradients` gets whole trees.

    Args:
        compiled: whether to run compiled kernels.
        traced: whether it runs inside a user's `mx.compile`, which fuses by itself.
    """
    if any(leaf.steps_whole_trees for leaf in inner.leaves):
        return WholeTreeUpdate(inner, wire, copies)
    return BucketUpdate(inner, wire, copies, compiled=compiled, traced=traced)


class BucketUpdate:
    """Steps bucket by bucket.

    A user's own code may raise an error. So all buckets are stepped before the first
    one is handed on, and an error leaves all as it was. New parameters are lazy until
    then, and the mean gradients stay in memory. Small models are stepped so too.

    Attributes:
        overwrites: whether large parameters are overwritten where they are: on a CPU,
            where no other rank has parts of them, which a gather puts there.
    """

    def __init__(
        self,
        inner: InnerOptimizer,
        wire: Wire,
        copies: WeightCopies,
        *,
        compiled: bool,
        traced: bool,
    ):
        self.shard = LocalShard(inner, wire, copies)
        is_whole = not (wire.plan.sharded and wire.has_peers)
        self.overwrites = is_whole and device.on_cpu()
        nbytes = sum(entry.nbytes for entry in wire.plan.entries)
        self.waits = nbytes < compilation.COMPILED_FROM or any(
            not leaf.is_of_mlx for leaf in inner.leaves
        )
        total = sum(p.stop - p.start for bucket in wire.pieces for p in bucket)

        def in_parts(piece: Piece) -> bool:
            return not (self.waits or traced) and PartStep.pays(piece, total)

        self.steps = [
            _BucketStep(self.shard, bucket, in_parts, compiled=compiled, traced=traced)
            for bucket in wire.pieces
        ]

    @property
    def is_compiled(self) -> bool:
        return all(step.is_compiled for step in self.steps)

    def unchanged(self, index: int, parameters: Flat) -> Stepped:
        if self.waits:
            return self.shard.unchanged_at_last(index, parameters)
        return [self.shard.unchanged(index, parameters)]

    def begin(self, parameters: Flat, scale: Array | None) -> ShardStep:
        self.shard.initialize(parameters)
        for leaf in self.shard.inner.leaves:
            leaf.tick()
        for step in self.steps:
            if step.parts is not None:  # state may have been loaded after an error
                step.parts.is_incomplete = False
        return _BucketUpdateStep(self, parameters, self.shard.states(), scale)


class _BucketUpdateStep:
    """One step under way: see `ShardStep`."""

    def __init__(
        self,
        update: BucketUpdate,
        parameters: Flat,
        states: dict[KeyPath, State],
        scale: Array | None,
    ):
        self._update, self._parameters = update, parameters
        self._states, self._scale = states, scale
        self._stepped: Stepped = []
        self._draws = RandomDraws(update.shard)
        self._saved = SavedStates(states.values() if update.waits else ())

    def add(self, index: int, mean: Chunk, slot: Slot | None = None) -> Stepped:
        update, wire = self._update, self._update.shard.wire
        bucket, step = wire.pieces[index], update.steps[index]
        parameters = [self._parameters.pop(piece.entry.path) for piece in bucket]
        states = [self._states[piece.entry.path] for piece in bucket]
        if not update.waits and step.needs_undo(states):
            self._saved = SavedStates(states)
        if not update.overwrites:
            slot = None
        stepped = step(mean, parameters, states, self._scale, slot)
        if not isinstance(stepped, Chunk):
            stepped = wire.stepped_chunk(index, stepped)
        self._stepped.append((index, stepped))
        if update.waits and len(self._stepped) < len(wire.pieces):
            return []
        self._draws.refuse()
        self._saved = SavedStates()
        handed_on, self._stepped = self._stepped, []
        return handed_on

    def undo(self) -> bool:
        self._saved.restore()
        return not any(step.is_incomplete for step in self._update.steps)

    def unpublished(self) -> list[Array]:
        return self._update.shard.unpublished()


class _BucketStep:
    """The step of all leaves on one bucket."""

    def __init__(
        self,
        shard: LocalShard,
        bucket: Sequence[Piece],
        in_parts: Callable[[Piece], bool],
        *,
        compiled: bool,
        traced: bool,
    ):
        strategy = shard.wire.plan.strategy
        groups = _groups(shard.inner, bucket)
        self._steps = [
            (
                indices,
                PieceStep(
                    leaf,
                    strategy,
                    [bucket[index] for index in indices],
                    shard.copies,
                    moments,
                    compiled=compiled,
                ),
            )
            for leaf, moments, indices in groups
        ]
        self.is_compiled = all(step.is_compiled for _, step in self._steps)
        self._fused: FusedStep | None = None
        self.parts: PartStep | None = None
        leaf, moments, _ = groups[0] if groups else (None, (), [])
        is_one = len(bucket) > 1 and len(groups) == 1
        if not traced and leaf is not None and is_one and can_be_fused(leaf):
            self._fused = FusedStep(
                leaf, strategy, bucket, shard.copies, moments, compiled=compiled
            )
        if len(bucket) == 1 and in_parts(bucket[0]):
            self.parts = PartStep(
                groups[0][0],
                bucket[0],
                strategy,
                shard.copies,
                moments,
                compiled=compiled,
            )

    @property
    def is_incomplete(self) -> bool:
        """Whether an error has left a part of the bucket's state stepped."""
        return self.parts is not None and self.parts.is_incomplete

    def needs_undo(self, states: Sequence[State]) -> bool:
        """Whether an error before the new state is evaluated leaves it in `states`."""
        return not self.is_compiled and not self._steps_parts(states)

    def _steps_parts(self, states: Sequence[State]) -> bool:
        return self.parts is not None and self.parts.applies_to(states[0])

    def __call__(
        self,
        mean: Chunk,
        parameters: Pieces,
        states: Sequence[State],
        scale: Array | None,
        slot: Slot | None,
    ) -> Chunk | Pieces:
        if self._fused is not None and self._fused.applies:
            return self._fused(mean, parameters, states, scale)
        if self.parts is not None and self._steps_parts(states):
            new = self.parts(mean, parameters, states[0], scale, slot)
            if new is not None:
                return [new]
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


def _groups(
    inner: InnerOptimizer, bucket: Sequence[Piece]
) -> list[tuple[Leaf, Moments, list[int]]]:
    """The indices of pieces with one optimizer and the same moments in 8 bits."""
    groups: dict[tuple[str, Moments], list[int]] = {}
    for index, piece in enumerate(bucket):
        kind = inner.owner(piece.entry.path).at, inner.moments(piece.entry)
        groups.setdefault(kind, []).append(index)
    return [
        (leaf, moments, indices)
        for leaf in inner.leaves
        for (at, moments), indices in groups.items()
        if at == leaf.at
    ]
