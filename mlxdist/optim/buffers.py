"""What a model changes while it computes, such as BatchNorm's running statistics.

Arrays that are not trained and that some rank's forward passes have replaced since the
last step. Frozen weights are not replaced, and so never travel.
"""

from __future__ import annotations

from typing import Any, Literal

import mlx.core as mx
import numpy as np
from mlx.nn import Module
from mlx.utils import tree_flatten

from ..arrays.types import Flat
from ..world.world import World

Mode = Literal["mean", "root"]


def untrained(model: Module) -> Flat:
    """The arrays of a model that are not trained, sorted by path."""
    trained = dict(tree_flatten(model.trainable_parameters()))
    flat = dict(tree_flatten(model.parameters()))
    return {path: flat[path] for path in sorted(flat.keys() - trained.keys())}


class Buffers:
    """Keeps a model's buffers the same on all ranks.

    Args:
        mode: "mean" averages them over the ranks, with the weights of their gradients,
            and takes rank 0's where they are integers; "root" takes rank 0's.
    """

    def __init__(self, mode: Mode, world: World):
        self.mode, self._world = mode, world
        self._seen: Flat = {}

    def remember(self, model: Any) -> None:
        """They are the same on all ranks now."""
        self._seen = untrained(model) if isinstance(model, Module) else {}

    def sync(self, model: Module, weight: float) -> None:
        """Makes them the same. Called by all ranks, after a step.

        A few bytes a step tell which have changed; then those travel: 8 bytes a number
        with "mean".
        """
        now = untrained(model)
        paths = self._changed(now)
        if not paths:
            return
        comm = self._world.control
        averaged = {
            path: now[path]
            for path in paths
            if self.mode == "mean" and mx.issubdtype(now[path].dtype, mx.floating)
        }
        means = self._world.mean(averaged, weight=weight) if averaged else {}
        fresh = [
            (path, means[path].astype(now[path].dtype))
            if path in means
            else (path, comm.broadcast(now[path], 0))
            for path in paths
        ]
        # Not update(), which some modules have of their own.
        for path, array in fresh:
            _put(model, path, array)
        self._seen = untrained(model)

    def _changed(self, now: Flat) -> list[str]:
        """Which of them some rank has replaced; sorted, the same on all ranks."""
        own = np.array([a is not self._seen.get(path) for path, a in now.items()])
        words = np.zeros(max(1, -(-own.size // 64)), np.uint64)
        bits = np.packbits(own)
        words.view(np.uint8)[: bits.size] = bits
        every = self._world.control.all_gather_words(words)
        either = np.bitwise_or.reduce(every, axis=0).view(np.uint8)
        changed = np.unpackbits(either)[: own.size]
        return [path for path, bit in zip(now, changed, strict=True) if bit]


def _put(model: Module, path: str, array: Any) -> None:
    *parents, last = path.split(".")
    place: Any = model
    for part in parents:
        place = place[int(part)] if isinstance(place, list | tuple) else place[part]
    place[int(last) if isinstance(place, list) else last] = array
