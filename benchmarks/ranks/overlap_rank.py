"""One rank of `overlap`: a transformer's steps, and their parts by themselves.

overlap_rank.py KIND, where KIND is ours, mpi or ring; takes turns with the others.
What ours does alone is a step of each rank in a world of its own.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from common import ROOT
from mlx.utils import tree_map

import mlxdist
from ranks.protocol import serve_requests

sys.path.insert(0, os.fspath(ROOT / "launch"))
from model import Transformer, loss_of

# Tokens in a row: few, so that rows can make computing take as long as the wire does.
CONTEXT = 4
# Ten equal layers, whose gradients come one after the other: 7.9 million parameters.
SHAPE: dict[str, Any] = {"width": 256, "heads": 8, "layers": 10, "table_sizes": ()}

Update = Callable[[nn.Module, Any], None]


class Steps:
    """What can be timed of training one model with one way to update it."""

    def __init__(self, update: Update, model: nn.Module, state: Any):
        self._update, self._model, self._state = update, model, state
        self._gradients_of = nn.value_and_grad(model, loss_of)
        mx.eval(model.parameters())
        ready = tree_map(lambda p: 1e-3 * p, model.trainable_parameters())
        mx.eval(ready)
        self._ready = ready

    def forward(self, x: mx.array) -> None:
        mx.eval(loss_of(self._model, x))

    def compute(self, x: mx.array) -> None:
        mx.eval(self._gradients_of(self._model, x))

    def wire(self, x: mx.array) -> None:
        self._update(self._model, self._ready)
        mx.eval(self._model.parameters(), self._state())

    def step(self, x: mx.array) -> None:
        loss, gradients = self._gradients_of(self._model, x)
        self._update(self._model, gradients)
        mx.eval(loss, self._model.parameters(), self._state())

    def in_a_row(self, x: mx.array) -> None:
        loss, gradients = self._gradients_of(self._model, x)
        mx.eval(loss, gradients)
        self._update(self._model, gradients)
        mx.eval(self._model.parameters(), self._state())


def ours() -> tuple[Any, dict[str, Steps]]:
    world = mlxdist.init()
    made = {}
    kinds: dict[str, dict[str, Any]] = {
        "sharded": {"shard": True},
        "replicated": {},
        "replicated native": {"transport": "native"},
        "alone": {"world": world.split(world.rank)},
    }
    for kind, options in kinds.items():
        model = make_model()
        optimizer = mlxdist.DistributedOptimizer(optim.AdamW(1e-4), **options)
        optimizer.init(model)
        made[kind] = Steps(optimizer.update, model, lambda o=optimizer: o.state)
    return world, made


def upstream(backend: str) -> tuple[Any, dict[str, Steps]]:
    group = mx.distributed.init(strict=True, backend=backend)
    model, optimizer = make_model(), optim.AdamW(1e-4)
    optimizer.init(model.trainable_parameters())

    def update(model: nn.Module, gradients: Any) -> None:
        optimizer.update(model, nn.average_gradients(gradients, group))

    return group, {backend: Steps(update, model, lambda: optimizer.state)}


def make_model() -> nn.Module:
    mx.random.seed(0)
    return Transformer(**SHAPE)


def main() -> None:
    (kind,) = sys.argv[1:]
    world, made = ours() if kind == "ours" else upstream(kind)
    if kind == "ours":
        rank, barrier = world.rank, world.barrier
    else:
        rank = world.rank()

        def barrier() -> None:
            mx.eval(mx.distributed.all_sum(mx.array(1.0), group=world))

    numbers = np.random.default_rng(rank)

    def turn(parts: list[list[str]], rows: int, rounds: int) -> dict[str, Any]:
        """Seconds of each (who, what), one after the other, in each of the rounds."""
        seconds: list[list[float]] = [[] for _ in parts]
        for number in range(-1, rounds):
            for taken, (who, what) in zip(seconds, parts, strict=True):
                x = mx.array(numbers.integers(0, 255, (rows, CONTEXT + 1)))
                mx.eval(x)
                barrier()
                began = time.perf_counter()
                getattr(made[who], what)(x)
                if number >= 0:
                    taken.append(time.perf_counter() - began)
        return {"seconds": seconds}

    serve_requests(rank, turn)


if __name__ == "__main__":
    main()
