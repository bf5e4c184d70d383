"""Losses and tokens since the last report, over all ranks."""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from ...world.world import World
from .step import Measured


class Report(NamedTuple):
    """What a window adds up to.

    Attributes:
        loss: the mean over its steps of each step's mean over the tokens of all ranks;
            steps without tokens don't count, and without any it is nan.
        tokens: of all ranks.
    """

    loss: float
    tokens: int
    steps: int
    seconds: float


class Window:
    """The micro-batches since the last report.

    Attributes:
        seconds: that this rank spent on them.
    """

    def __init__(self, world: World):
        self._world = world
        self._known = np.zeros((0, 2))
        self._local: list[Measured] = []
        self.seconds = 0.0

    def add(self, measured: Measured, seconds: float) -> None:
        self._local.append(measured)
        self.seconds += seconds

    def report(self) -> Report:
        """Return what there is, and begin anew. Called by all ranks."""
        rows = self.rows()
        seconds, self.seconds, self._known = self.seconds, 0.0, np.zeros((0, 2))
        counted = rows[rows[:, 1] > 0]
        loss = np.mean(counted[:, 0] / counted[:, 1]) if len(counted) else np.nan
        return Report(float(loss), int(rows[:, 1].sum()), len(rows), seconds)

    def rows(self) -> NDArray[np.float64]:
        """Return a row of loss and tokens for each micro-batch, summed over the ranks.

        Called by all ranks. One message of 16 bytes for each.
        """
        if self._local:
            local = np.array([[m.loss.item(), m.tokens.item()] for m in self._local])
            summed = self._world.mean(local) * self._world.size
            self._known = np.concatenate([self._known, summed])
            self._local = []
        return self._known

    def resume(self, rows: NDArray[np.float64], seconds: float) -> None:
        """Continue a window of which a checkpoint had these rows."""
        self._known, self.seconds = rows, seconds


def peak_gigabytes() -> float:
    """Return the most memory that MLX has had on this rank."""
    return float(mx.get_peak_memory()) / 1e9
