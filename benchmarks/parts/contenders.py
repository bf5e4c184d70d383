"""What takes an optimizer's step on MLX arrays: ours in its ways, and upstream."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim

import mlxdist
from mlxdist.world import process as runtime
from parts.phases import PhaseClock
from parts.tensors import make_model

OURS: dict[str, dict[str, Any]] = {
    "sharded": {"shard": True},
    "replicated": {"shard": False},
    "replicated native": {"shard": False, "transport": "native"},
    "replicated host": {"shard": False, "transport": "host"},
}
UPSTREAM = ("upstream", "upstream tuned")


class Contender:
    """A model, and what takes a step of it. `barrier` is the world's own."""

    rank: int
    model: nn.Module
    optimizer: optim.Optimizer
    barrier: Callable[[], object]
    step: Callable[[Any], None]
    clock: PhaseClock | None = None


class Ours(Contender):
    def __init__(self, kind: str, tensors: str, dtype: str):
        world = mlxdist.init()
        self.rank, self.barrier = world.rank, world.barrier
        self.clock = PhaseClock(world.recorder)
        self.model = make_model(tensors, dtype)
        self.optimizer = mlxdist.DistributedOptimizer(optim.AdamW(1e-3), **OURS[kind])
        self.optimizer.init(self.model)

    def step(self, gradients: Any) -> None:
        self.optimizer.update(self.model, gradients)
        mx.eval(self.model.parameters(), self.optimizer.state)


class Upstream(Contender):
    """`nn.average_gradients`, then MLX's optimizer, compiled as its examples do it."""

    def __init__(self, kind: str, tensors: str, dtype: str):
        # Without strict=True, MLX that finds no MPI makes each rank a world of one.
        many = int(os.environ.get("OMPI_COMM_WORLD_SIZE", 1)) > 1
        group = mx.distributed.init(strict=many, backend="mpi")
        if kind != "upstream":
            assert runtime.keep_freed_memory(), "there is no such setting here"
        self.rank = group.rank()
        self.model = make_model(tensors, dtype)
        self.optimizer = optim.AdamW(1e-3)
        self.optimizer.init(self.model.trainable_parameters())
        self.state = state = [self.model.state, self.optimizer.state]
        mx.eval(state)

        @partial(mx.compile, inputs=state, outputs=state)
        def update(gradients: Any) -> None:
            self.optimizer.update(self.model, gradients)

        self.update = update

    def barrier(self) -> None:
        mx.eval(mx.distributed.all_sum(mx.array(1.0)))

    def step(self, gradients: Any) -> None:
        self.update(nn.average_gradients(gradients))
        mx.eval(self.state)


def make_contender(kind: str, tensors: str, dtype: str) -> Contender:
    """A contender by its name, with a model of its own."""
    return (Upstream if kind in UPSTREAM else Ours)(kind, tensors, dtype)
