"""One rank of `overlap` and `plan`: training steps of a transformer, and their parts.

overlap_rank.py KIND, where KIND is mlxdist, mpi or ring. The contender "alone" of
mlxdist steps in a world of this rank only.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_map

import mlxdist
from ranks.contenders import OPTIONS, group_barrier
from ranks.protocol import serve_requests
from ranks.transformer import Transformer, loss_of

# Tokens per row. With so few, the number of rows sets compute time in small steps.
CONTEXT = 4
# Ten equal layers, whose gradients are ready one after the other: 7.9M parameters.
SHAPE: dict[str, Any] = {"width": 256, "heads": 8, "layers": 10, "table_sizes": ()}

Update = Callable[[nn.Module, Any], None]


class Steps:
    """The timed parts of training one model with one way to update it."""

    def __init__(self, update: Update, model: nn.Module, state: Callable[[], Any]):
        self._update, self.model, self._state = update, model, state
        self._value_and_grad = nn.value_and_grad(model, loss_of)
        mx.eval(model.parameters())
        gradients = tree_map(lambda p: 1e-3 * p, model.trainable_parameters())
        mx.eval(gradients)
        self._evaluated_gradients = gradients

    def forward(self, x: mx.array) -> None:
        mx.eval(loss_of(self.model, x))

    def compute(self, x: mx.array) -> None:
        mx.eval(self._value_and_grad(self.model, x))

    def wire(self, x: mx.array) -> None:
        self._update(self.model, self._evaluated_gradients)
        mx.eval(self.model.parameters(), self._state())

    def step(self, x: mx.array) -> None:
        loss, gradients = self._value_and_grad(self.model, x)
        self._update(self.model, gradients)
        mx.eval(loss, self._state())

    def in_a_row(self, x: mx.array) -> None:
        loss, gradients = self._value_and_grad(self.model, x)
        mx.eval(loss, gradients)
        self._update(self.model, gradients)
        mx.eval(self.model.parameters(), self._state())


def mlxdist_steps(world: mlxdist.World) -> dict[str, Steps]:
    names = ("sharded", "replicated", "replicated native")
    contenders: dict[str, dict[str, Any]] = {name: OPTIONS[name] for name in names}
    contenders["alone"] = {"world": world.split(world.rank)}
    steps = {}
    for name, options in contenders.items():
        model = make_model()
        optimizer = mlxdist.DistributedOptimizer(optim.AdamW(1e-4), **options)
        optimizer.init(model)
        steps[name] = Steps(optimizer.update, model, lambda o=optimizer: o.state)
    return steps


def upstream_steps(group: mx.distributed.Group) -> Steps:
    model, optimizer = make_model(), optim.AdamW(1e-4)
    optimizer.init(model.trainable_parameters())

    def update(model: nn.Module, gradients: Any) -> None:
        optimizer.update(model, nn.average_gradients(gradients, group))

    return Steps(update, model, lambda: optimizer.state)


def make_model() -> nn.Module:
    mx.random.seed(0)
    return Transformer(**SHAPE)


def main() -> None:
    (kind,) = sys.argv[1:]
    if kind == "mlxdist":
        world = mlxdist.init()
        steps, rank, barrier = mlxdist_steps(world), world.rank, world.barrier
    else:
        group = mx.distributed.init(strict=True, backend=kind)
        steps, rank = {kind: upstream_steps(group)}, group.rank()
        barrier = partial(group_barrier, group)
    random = np.random.default_rng(rank)

    def handle(
        parts: list[list[str]], rows: int, samples: int, repeats: int
    ) -> dict[str, Any]:
        """Time each (contender, part), one after the other, `samples` times.

        A sample is the average of `repeats` runs in a row, at whose end the parameters
        have arrived: they may do so behind the next forward pass.
        """
        seconds: list[list[float]] = [[] for _ in parts]
        for number in range(-1, samples):
            for part_seconds, (name, part) in zip(seconds, parts, strict=True):
                x = mx.array(random.integers(0, 255, (rows, CONTEXT + 1)))
                mx.eval(x)
                barrier()
                began = time.perf_counter()
                for _ in range(repeats):
                    getattr(steps[name], part)(x)
                mx.eval(steps[name].model.parameters())
                took = time.perf_counter() - began
                if number >= 0:
                    part_seconds.append(took / repeats)
        return {"seconds": seconds}

    serve_requests(rank, handle)


if __name__ == "__main__":
    main()
