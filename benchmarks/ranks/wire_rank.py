"""One rank of `wire`: exchanges of gradients over a network.

wire_rank.py KIND TENSORS, where KIND is mlxdist, mlxdist-ring, mpi or ring.
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
from mlx.utils import tree_flatten, tree_map

import mlxdist
from ranks.contenders import group_barrier
from ranks.protocol import serve_requests
from ranks.tensors import make_model

# Starts one exchange and returns its result, which is not evaluated.
Exchange = Callable[[], Any]


class CopyGradients(optim.Optimizer):
    """Makes the averaged gradients the parameters: an exchange without arithmetic."""

    elementwise = True

    def init_single(self, parameter: mx.array, state: dict[str, Any]) -> None:
        """Add nothing: there is no state."""

    def apply_single(
        self, gradient: mx.array, parameter: mx.array, state: dict[str, Any]
    ) -> mx.array:
        return gradient


def mlxdist_exchanges(world: mlxdist.World, tensors: str) -> dict[str, Exchange]:
    exchanges: dict[str, Exchange] = {}
    variants = {"sharded": ("elements", "host"), "replicated": (False, "native")}
    if world.backend == "ring":
        variants = {"sharded over ring": ("elements", "native")}
    for variant, (shard, transport) in variants.items():
        for name, inner in (("exchange", CopyGradients()), ("step", optim.SGD(1e-6))):
            # Nothing is computed behind an exchange here.
            optimizer = mlxdist.DistributedOptimizer(
                inner, shard=shard, transport=transport, overlap_forward=False
            )
            model = make_model(tensors, "float32")
            exchanges[f"{variant} {name}"] = _update(model, optimizer, world.rank)
    return exchanges


def _update(model: nn.Module, optimizer: optim.Optimizer, rank: int) -> Exchange:
    optimizer.init(model)
    gradients = _gradients(model, rank)

    def update() -> Any:
        optimizer.update(model, gradients)
        return model.parameters()

    return update


def upstream_exchanges(
    group: mx.distributed.Group, backend: str, tensors: str
) -> dict[str, Exchange]:
    model = make_model(tensors, "float32")
    gradients = _gradients(model, group.rank())
    flat = mx.concatenate([g.reshape(-1) for _, g in tree_flatten(gradients)])
    mx.eval(flat)
    optimizer = optim.SGD(1e-6)
    optimizer.init(model.trainable_parameters())

    def step() -> Any:
        optimizer.update(model, nn.average_gradients(gradients, group))
        return model.parameters()

    return {
        f"{backend} all_sum": lambda: mx.distributed.all_sum(flat, group=group),
        f"{backend} average_gradients": lambda: nn.average_gradients(gradients, group),
        f"{backend} step": step,
    }


def _gradients(model: nn.Module, rank: int) -> Any:
    gradients = tree_map(lambda p: p * (rank + 1.0), model.trainable_parameters())
    mx.eval(gradients)
    return gradients


def check(name: str, result: Any, tensors: str, size: int) -> None:
    """Assert that a result is the mean, or the sum, of the gradients of all ranks.

    Those of rank r are r + 1 times the model's parameters.
    """
    if name.endswith("step"):
        return
    path, first = tree_flatten(make_model(tensors, "float32").parameters())[0]
    factors = size * (size + 1) / 2
    if isinstance(result, mx.array):
        actual, expected = result[: first.size], first.reshape(-1) * factors
    else:
        actual, expected = dict(tree_flatten(result))[path], first * (factors / size)
    assert mx.allclose(actual, expected, rtol=1e-5, atol=0), f"{name} is wrong"


def main() -> None:
    kind, tensors = sys.argv[1:]
    if kind.startswith("mlxdist"):
        world = mlxdist.init("ring" if kind == "mlxdist-ring" else "mpi")
        exchanges = mlxdist_exchanges(world, tensors)
        rank, size, barrier = world.rank, world.size, world.barrier
    else:
        group = mx.distributed.init(strict=True, backend=kind)
        exchanges = upstream_exchanges(group, kind, tensors)
        rank, size, barrier = group.rank(), group.size(), partial(group_barrier, group)

    def handle(name: str, samples: int) -> dict[str, Any]:
        seconds, cpu_seconds = [], []
        for number in range(-1, samples):
            barrier()
            began, cpu_began = time.perf_counter(), time.process_time()
            result = exchanges[name]()
            mx.eval(result)
            if number >= 0:
                seconds.append(time.perf_counter() - began)
                cpu_seconds.append(time.process_time() - cpu_began)
            else:
                check(name, result, tensors, size)
        return {"seconds": seconds, "cpu": cpu_seconds}

    serve_requests(rank, handle)


if __name__ == "__main__":
    main()
