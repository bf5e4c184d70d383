"""One rank of `compare`: steps with the mlxdist that PYTHONPATH has first.

compare_rank.py tensors TENSORS DTYPE OPTIONS | transformer update | transformer step,
under mpirun. Uses the public API of mlxdist alone.
"""

from __future__ import annotations

import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten

import mlxdist
from ranks.contenders import Mlxdist
from ranks.protocol import serve_requests
from ranks.tensors import fresh_gradients
from ranks.transformer import Transformer, loss_of

ROWS, CONTEXT = 6, 128

# The untimed preparation of a sample, and the timed part, which is given its result.
Sample = tuple[Callable[[], Any], Callable[[Any], None]]


def main() -> None:
    kind, *arguments = sys.argv[1:]
    world = mlxdist.init()
    model, (prepare, run) = (
        tensors(*arguments) if kind == "tensors" else transformer(world, *arguments)
    )

    def handle(steps: int = 0, warmup: int = 0, digest: bool = False) -> dict[str, Any]:
        seconds = []
        for number in range(-warmup, steps):
            prepared = prepare()
            world.barrier()
            began = time.perf_counter()
            run(prepared)
            if number >= 0:
                seconds.append(time.perf_counter() - began)
            del prepared
        result: dict[str, Any] = {"seconds": seconds}
        if digest:
            result["crc32"] = crc32_of(model)
            result["package"] = str(Path(mlxdist.__file__).parents[1])
        return result

    serve_requests(world.rank, handle)


def tensors(name: str, dtype: str, options: str) -> tuple[nn.Module, Sample]:
    """AdamW on gradients that are evaluated already, as in `step`."""
    contender = Mlxdist(options, name, dtype)
    count = 0

    def prepare() -> Any:
        nonlocal count
        count += 1
        return fresh_gradients(contender.model, count, contender.rank)

    return contender.model, (prepare, contender.step)


def transformer(world: mlxdist.World, part: str) -> tuple[nn.Module, Sample]:
    """Sharded AdamW with all checks on the quickstart's model, as in `guard_cost`."""
    world.seed(0)
    model = Transformer()
    optimizer = mlxdist.DistributedOptimizer(
        optim.AdamW(1e-4), shard=True, check_every=100
    )
    optimizer.init(model)
    value_and_grad = nn.value_and_grad(model, loss_of)
    random = np.random.default_rng(world.rank)
    rows = mx.array(random.integers(0, 255, (ROWS, CONTEXT + 1)))

    def compute() -> Any:
        gradients = value_and_grad(model, rows)[1]
        mx.eval(gradients)
        return gradients

    def update(gradients: Any) -> None:
        optimizer.update(model, gradients)
        mx.eval(model.parameters(), optimizer.state)

    def step(_: Any) -> None:
        loss, gradients = value_and_grad(model, rows)
        optimizer.update(model, gradients)
        mx.eval(loss, model.parameters(), optimizer.state)

    samples: dict[str, Sample] = {
        "update": (compute, update),
        "step": (lambda: None, step),
    }
    return model, samples[part]


def crc32_of(model: nn.Module) -> int:
    """Return a checksum of all parameters' bits."""
    total = 0
    for _, parameter in sorted(tree_flatten(model.parameters())):
        total = zlib.crc32(np.array(parameter.view(mx.uint8)).data, total)
    return total


if __name__ == "__main__":
    main()
