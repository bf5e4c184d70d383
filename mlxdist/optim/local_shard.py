"""This rank's pieces of the parameters, and the wrapped optimizer's state of them."""

from __future__ import annotations

import mlx.core as mx

from ..arrays.concat import Chunk
from ..arrays.tree_index import TreeIndex
from ..arrays.trees import cut, cut_all, leaves_of
from ..arrays.types import Array, Flat
from ..comm.wire import Wire
from ..layout.paths import KeyPath
from . import ema
from .inner_optimizer import InnerOptimizer, Leaf
from .quantized_step import State, put_quantized
from .weight_copies import WeightCopies

Stepped = list[tuple[int, Chunk]]  # (index of the bucket, its new pieces)


class LocalShard:
    """Pieces and state by path."""

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
            states, entries = self.states(), self.wire.plan.by_path
            for path in local:
                put_quantized(states[path], self.inner.moments(entries[path]))

    def unpublished(self) -> list[Array]:
        """See `ShardStep.unpublished`."""
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

    def unchanged(self, index: int, parameters: Flat) -> tuple[int, Chunk]:
        """This rank's pieces of a bucket, with parameters as they are."""
        wire = self.wire
        pieces = [
            cut(parameters[piece.entry.path], piece, wire.plan.strategy)
            for piece in wire.pieces[index]
        ]
        return index, wire.stepped_chunk(index, pieces)

    def unchanged_at_last(self, index: int, parameters: Flat) -> Stepped:
        """All buckets, with parameters as they are, in place of the last one."""
        order = self.wire.order
        is_last = index == order[-1]
        return [self.unchanged(i, parameters) for i in order] if is_last else []

    def states(self) -> dict[KeyPath, State]:
        """The optimizer's own dicts of the pieces' state."""
        states: dict[KeyPath, State] = {}
        for leaf, index in self._states:
            states.update(index.flat(leaf.optimizer.state))
        return states
