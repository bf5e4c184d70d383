"""One rank of `train` or `scaling`: trains the quickstart's transformer on text.

train_rank.py CONTENDER WIDTH LAYERS TABLE ROWS CONTEXT, under mpirun.
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
from mlx.utils import tree_flatten

import mlxdist
from ranks.contenders import group_barrier
from ranks.protocol import serve_requests
from ranks.transformer import Transformer, loss_of, read_corpus, windows


def main() -> None:
    name = sys.argv[1]
    width, layers, table, rows, context = map(int, sys.argv[2:])
    upstream = name.startswith("upstream")
    group = mx.distributed.init(strict=True) if upstream else mlxdist.init().group
    mx.random.seed(0)
    tables, heads = (table // 2, table, table), width // 64
    model = Transformer(width=width, heads=heads, layers=layers, table_sizes=tables)
    mx.eval(model.parameters())
    value_and_grad = nn.value_and_grad(model, loss_of)
    optimizer: Any = optim.AdamW(1e-3)
    if not upstream:
        sharded = name != "ours replicated"
        optimizer = mlxdist.DistributedOptimizer(optimizer, shard=sharded)
    make_update = upstream_update if upstream else mlxdist_update
    update = make_update(name, model, optimizer)
    text = windows(read_corpus().train, context, "to train on")
    random = np.random.default_rng(group.rank())

    def batch() -> mx.array:
        return mx.array(text[random.integers(0, len(text), rows)])

    # For compute alone, so that all contenders train on the same batches.
    fixed_batch = batch()

    def train() -> float:
        loss, gradients = value_and_grad(model, batch())
        update(gradients)
        return float(loss)

    def compute() -> float:
        loss, gradients = value_and_grad(model, fixed_batch)
        mx.eval(loss, gradients)
        return float(loss)

    def handle(steps: int, part: str) -> dict[str, Any]:
        run = {"train": train, "compute": compute}[part]
        run()  # the first step after a pause is slow
        group_barrier(group)
        began, processor = time.perf_counter(), time.process_time()
        losses = [run() for _ in range(steps)]
        mx.eval(model.parameters())
        seconds = (time.perf_counter() - began) / steps
        return {
            "seconds": seconds,
            "processor": (time.process_time() - processor) / steps,
            "loss": sum(losses) / steps,
            "bytes": nbytes_of(model.trainable_parameters()),
            "state": nbytes_of(optimizer.state),
        }

    serve_requests(group.rank(), handle)


def mlxdist_update(
    name: str, model: nn.Module, optimizer: Any
) -> Callable[[Any], None]:
    optimizer.init(model)

    def update(gradients: Any) -> None:
        optimizer.update(model, gradients)
        mx.eval(optimizer.state)  # parameters arrive behind the next forward pass

    return update


def upstream_update(
    name: str, model: nn.Module, optimizer: Any
) -> Callable[[Any], None]:
    optimizer.init(model.trainable_parameters())
    state = [model.state, optimizer.state]

    def apply(gradients: Any) -> None:
        optimizer.update(model, gradients)

    if name != "upstream plain":
        apply = partial(mx.compile, inputs=state, outputs=state)(apply)

    def update(gradients: Any) -> None:
        apply(nn.average_gradients(gradients))
        mx.eval(state)

    return update


def nbytes_of(tree: Any) -> int:
    return sum(leaf.nbytes for _, leaf in tree_flatten(tree) if hasattr(leaf, "nbytes"))


if __name__ == "__main__":
    main()
