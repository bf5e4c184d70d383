"""The step of an optimizer that overrides `apply_gradients`: whole trees at once."""

from __future__ import annotations

from ..arrays.concat import Chunk
from ..arrays.trees import cut_all
from ..arrays.types import Array, Flat
from ..comm.gather import Slot
from ..comm.wire import Wire
from .inner_optimizer import InnerOptimizer
from .local_shard import LocalShard, Stepped
from .piece_step import fitted, scaled
from .random_draws import RandomDraws
from .rollback import SavedStates
from .weight_copies import WeightCopies


class WholeTreeUpdate:
    """Waits for all buckets, and calls the optimizer's `apply_gradients` once."""

    is_compiled = False

    def __init__(self, inner: InnerOptimizer, wire: Wire, copies: WeightCopies):
        self.shard = LocalShard(inner, wire, copies)

    def unchanged(self, index: int, parameters: Flat) -> Stepped:
        return self.shard.unchanged_at_last(index, parameters)

    def begin(self, parameters: Flat, scale: Array | None) -> WholeTreeStep:
        shard = self.shard
        shard.initialize(parameters)
        local = cut_all(parameters, shard.wire.pieces, shard.wire.plan)
        parameters.clear()
        return WholeTreeStep(shard, local, scale)


class WholeTreeStep:
    """One step under way: see `ShardStep`."""

    def __init__(self, shard: LocalShard, parameters: Flat, scale: Array | None):
        self._shard = shard
        self._parameters = parameters
        self._scale = scale
        self._means: Flat = {}
        self._buckets_left = len(shard.wire.pieces)
        self._saved = SavedStates()

    def add(self, index: int, mean: Chunk, slot: Slot | None = None) -> Stepped:
        bucket = self._shard.wire.pieces[index]
        for piece, gradient in zip(bucket, mean.pieces(), strict=True):
            path = piece.entry.path
            dtype = self._shard.copies.update_dtype(self._parameters[path].dtype)
            self._means[path] = scaled(gradient, dtype, self._scale)
        self._buckets_left -= 1
        return [] if self._buckets_left else self._step()

    def undo(self) -> bool:
        self._saved.restore()
        return True

    def unpublished(self) -> list[Array]:
        return self._shard.unpublished()

    def _step(self) -> Stepped:
        shard, local = self._shard, self._parameters
        states, copies = shard.states(), shard.copies
        self._saved = SavedStates(states.values())
        masters = {p: copies.masters.current(local[p], states[p]) for p in local}
        draws = RandomDraws(shard)
        stepped = shard.inner.apply_gradients(self._means, masters)
        for path, parameter in masters.items():
            optimizer = shard.inner.owner(path).optimizer
            stepped[path] = fitted(stepped.get(path), parameter, path, optimizer)
        states = shard.states()  # the optimizer may have made new dicts
        leaves = {p: shard.inner.owner(p).optimizer for p in local}
        settled = {
            p: copies.settle(leaves[p], stepped[p], local[p], states[p]) for p in local
        }
        draws.refuse()
        self._saved = SavedStates()
        return [
            (
                index,
                shard.wire.stepped_chunk(
                    index,
                    [settled[piece.entry.path] for piece in shard.wire.pieces[index]],
                ),
            )
            for index in shard.wire.order
        ]
