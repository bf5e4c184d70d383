"""Optimizers whose steps are compared: mlxdist with its options, and upstream MLX."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim

import mlxdist
from ranks.phases import PhaseClock
from ranks.tensors import make_model

OPTIONS: dict[str, dict[str, Any]] = {
    "sharded": {"shard": True},
    "sharded int8": {"shard": True, "state_dtype": "int8", "float32_state": ()},
    "replicated": {"shard": False},
    "replicated native": {"shard": False, "transport": "native"},
    "replicated host": {"shard": False, "transport": "host"},
    "compiled": {},
}
UPSTREAM = ("upstream", "upstream tuned", "upstream compiled")


def group_barrier(group: mx.distributed.Group) -> None:
    """Return when every rank of an MLX group has called it."""
    mx.eval(mx.distributed.all_sum(mx.array(1.0), group=group))


class Contender:
    """A model and its optimizer; `barrier` synchronizes the ranks."""

    rank: int
    model: nn.Module
    optimizer: optim.Optimizer
    barrier: Callable[[], object]
    step: Callable[[Any], None]
    clock: PhaseClock | None = None


class Mlxdist(Contender):
    """AdamW in a DistributedOptimizer."""

    def __init__(self, name: str, tensors: str, dtype: str):
        world = mlxdist.init()
        self.rank, self.barrier = world.rank, world.barrier
        self.clock = PhaseClock(world.recorder)
        self.model = make_model(tensors, dtype)
        self.optimizer = mlxdist.DistributedOptimizer(
            optim.AdamW(1e-3), **OPTIONS[name]
        )
        self.optimizer.init(self.model)
        self.update: Callable[[Any], Any] = partial(self.optimizer.update, self.model)
        if name == "compiled":
            self.update = compiled(self, self.update)

    def step(self, gradients: Any) -> None:
        self.update(gradients)
        mx.eval(self.model.state, self.optimizer.state)


class Upstream(Contender):
    """`nn.average_gradients` and MLX's AdamW, compiled as in MLX's examples.

    "upstream tuned" has the allocator setting of mlxdist as well, and "upstream
    compiled" averages inside of `mx.compile` too.
    """

    def __init__(self, name: str, tensors: str, dtype: str):
        # Without strict=True, MLX that finds no MPI makes each rank a world of one.
        multiple = int(os.environ.get("OMPI_COMM_WORLD_SIZE", 1)) > 1
        group = mx.distributed.init(strict=multiple, backend="mpi")
        if name == "upstream tuned":
            _keep_freed_memory()
        self.rank, self.barrier = group.rank(), partial(group_barrier, group)
        self.model = make_model(tensors, dtype)
        self.optimizer = optim.AdamW(1e-3)
        self.optimizer.init(self.model.trainable_parameters())
        update: Callable[[Any], Any] = partial(self.optimizer.update, self.model)
        if name == "upstream compiled":
            self.update = compiled(self, lambda g: update(nn.average_gradients(g)))
        else:
            compiled_update = compiled(self, update)
            self.update = lambda g: compiled_update(nn.average_gradients(g))

    def step(self, gradients: Any) -> None:
        self.update(gradients)
        mx.eval(self.model.state, self.optimizer.state)


def compiled(
    contender: Contender, update: Callable[[Any], Any]
) -> Callable[[Any], object]:
    """Compile an update of a contender's model and optimizer, as MLX's examples do."""
    state = [contender.model.state, contender.optimizer.state]
    mx.eval(state)

    def update_of(gradients: Any) -> None:
        update(gradients)

    step: Callable[[Any], object] = partial(mx.compile, inputs=state, outputs=state)(
        update_of
    )
    return step


def _keep_freed_memory() -> None:
    from mlxdist.world import process  # not in every checkout that `compare` runs

    assert process.keep_freed_memory(), "this C library has no such setting"


def make_contender(name: str, tensors: str, dtype: str) -> Contender:
    """Return a contender by its name, with a model of its own."""
    return (Upstream if name in UPSTREAM else Mlxdist)(name, tensors, dtype)
