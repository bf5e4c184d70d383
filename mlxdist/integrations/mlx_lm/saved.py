"""What a run leaves behind: mlx-lm's files from rank 0, and checkpoints to resume."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx.utils import tree_flatten

from ...checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from ...comm.agreement import agree_on_success
from ...optim.optimizer import DistributedOptimizer
from .arguments import Arguments
from .batches import Batches
from .window import Window

KEPT = 2  # checkpoints


class Position(NamedTuple):
    """Where a run is: iterations done, and tokens trained on by all ranks."""

    iteration: int = 0
    tokens: int = 0


class Saved:
    """Saves and loads one training."""

    def __init__(
        self,
        arguments: Arguments,
        model: nn.Module,
        optimizer: DistributedOptimizer,
        batches: Batches,
        window: Window,
    ):
        self._arguments, self._model, self._optimizer = arguments, model, optimizer
        self._batches, self._window = batches, window
        self._world = optimizer.world

    def save_weights(self, iteration: int | None = None) -> Path:
        """Save the trained parameters as mlx-lm does. Called by all ranks.

        Args:
            iteration: also under its number.

        Returns:
            The last file.
        """
        path = Path(self._arguments.upstream.adapter_file)
        paths = [path]
        if iteration is not None:
            paths.append(path.parent / f"{iteration:07d}_adapters.safetensors")

        def write() -> None:
            if self._world.is_root:
                weights = dict(tree_flatten(self._model.trainable_parameters()))
                for path in paths:
                    part = path.with_name(f".{path.name}.part.safetensors")
                    path.parent.mkdir(parents=True, exist_ok=True)
                    mx.save_safetensors(str(part), weights)
                    os.replace(part, path)

        agree_on_success(self._world.control, "mlx_lm.train: saving", write)
        return paths[-1]

    def save(self, at: Position) -> None:
        """Save a checkpoint. Called by all ranks, between two steps."""
        extra = {
            "tokens": at.tokens,
            "window": self._window.rows(),
            "seconds": self._world.mean(self._window.seconds),
            "order": self._arguments.order,
            "batches": self._batches.state_dict(),
        }
        save_checkpoint(
            self._arguments.checkpoints,
            at.iteration,
            self._model.trainable_parameters(),
            self._optimizer,
            extra,
            keep=KEPT,
        )

    def load(self) -> Position:
        """Load the last checkpoint, on any number of ranks.

        Returns:
            Where it is; the beginning where the job was restarted without one.

        Raises:
            CheckpointError: on all ranks, where there is none, or it is of other data.
        """
        folder = self._arguments.checkpoints
        parameters = self._model.trainable_parameters()
        missing_ok = not self._arguments.resume
        loaded = load_checkpoint(
            folder, parameters, self._optimizer, missing_ok=missing_ok
        )
        if loaded is None:
            return Position()
        self._model.update(parameters)
        found, wanted = loaded.extra["order"], self._arguments.order
        if found != wanted:
            raise CheckpointError(
                f"{loaded.path} is of a training with {found}, this one has {wanted}: "
                "the order of the data would be another. Give the same, or start anew "
                "in another folder"
            )
        self._batches.load_state_dict(loaded.extra["batches"])
        rows = np.array(loaded.extra["window"]).reshape(-1, 2)
        self._window.resume(rows, float(loaded.extra["seconds"]))
        return Position(loaded.step, int(loaded.extra["tokens"]))
