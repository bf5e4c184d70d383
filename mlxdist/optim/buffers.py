"""Synchronized buffers: arrays that a model changes in its forward pass.

Such as BatchNorm's running statistics: arrays that are not trained and that the forward
passes of some rank have replaced since the last step. Frozen weights are not replaced,
and so are never sent.
"""

from __future__ import annotations

from typing import Literal

import mlx.core as mx
import numpy as np
from mlx.nn import Module

from ..arrays.trees import leaves_of, put
from ..arrays.types import Flat, Tree
from ..layout.paths import KeyPath
from ..world.world import World

Mode = Literal["mean", "root"]


class SyncedBuffers:
    """Keeps a model's buffers the same on all ranks.

    Args:
        mode: "mean" averages them over the ranks, with the weights of their gradients,
            and takes rank 0's where they are integers; "root" takes rank 0's; None
            leaves each rank its own.
    """

    def __init__(self, mode: Mode | None, world: World):
        self.mode, self._world = mode, world
        self._synced: Flat = {}

    def remember(self, model: Tree) -> None:
        """Take note that the buffers are the same on all ranks."""
        if self.mode is not None:
            self._synced = _untrained(model) if isinstance(model, Module) else {}

    def sync(self, model: Module, weight: float) -> None:
        """Make the buffers the same. Called by all ranks, after a step.

        A few bytes a step find which have changed; those are sent, 8 bytes a number
        with "mean".
        """
        if self.mode is None:
            return
        buffers = _untrained(model)
        paths = self._changed(buffers)
        if not paths:
            return
        averaged = {
            path: buffers[path]
            for path in paths
            if self.mode == "mean" and mx.issubdtype(buffers[path].dtype, mx.inexact)
        }
        others = {path: buffers[path] for path in paths if path not in averaged}
        synced = self._world.mean(averaged, weight=weight) if averaged else {}
        synced |= self._world.broadcast(others) if others else {}
        for path in paths:
            # Not model.update(), which some modules define for themselves.
            put(model, path, synced[path].astype(buffers[path].dtype))
        self._synced = _untrained(model)

    def _changed(self, buffers: Flat) -> list[KeyPath]:
        """Paths that some rank has replaced; sorted, the same on all ranks."""
        replaced = np.array(
            [array is not self._synced.get(path) for path, array in buffers.items()],
            bool,  # also where there are none
        )
        words = np.zeros(max(1, -(-replaced.size // 64)), np.uint64)
        bits = np.packbits(replaced)
        words.view(np.uint8)[: bits.size] = bits
        gathered = self._world.control.all_gather_words(words)
        either = np.bitwise_or.reduce(gathered, axis=0).view(np.uint8)
        changed = np.unpackbits(either)[: replaced.size]
        return [path for path, bit in zip(buffers, changed, strict=True) if bit]


def _untrained(model: Module) -> Flat:
    """The arrays of a model that are not trained, sorted by path."""
    trained = leaves_of(model.trainable_parameters())
    flat = leaves_of(model.parameters())
    return {path: flat[path] for path in sorted(flat.keys() - trained.keys())}
