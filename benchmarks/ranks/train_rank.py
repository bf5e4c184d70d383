"""One rank of `train`: the quickstart's transformer on text, ours or upstream.

train_rank.py KIND WIDTH LAYERS TABLE ROWS CONTEXT, under mpirun.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import common
import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten

import mlxdist
from ranks.protocol import serve_requests

sys.path.insert(0, str(common.ROOT / "launch"))
from corpus import read_corpus, windows
from model import Transformer, loss_of

KINDS = ("ours", "ours replicated", "upstream", "upstream plain")


def main() -> None:
    kind = sys.argv[1]
    width, layers, table, rows, context = map(int, sys.argv[2:])
    ours = kind.startswith("ours")
    group = mlxdist.init().group if ours else mx.distributed.init(strict=True)
    mx.random.seed(0)
    tables, heads = (table // 2, table, table), width // 64
    model = Transformer(width=width, heads=heads, layers=layers, table_sizes=tables)
    mx.eval(model.parameters())
    loss_and_gradients = nn.value_and_grad(model, loss_of)
    take_step = make_ours(kind, model) if ours else make_upstream(kind, model)
    text = windows(read_corpus().train, context)
    numbers = np.random.default_rng(group.rank())

    def batch() -> mx.array:
        return mx.array(text[numbers.integers(0, len(text), rows)])

    sample = batch()  # for compute alone, so that all train on the same text

    def train() -> float:
        loss, gradients = loss_and_gradients(model, batch())
        take_step(gradients)
        return float(loss)

    def compute() -> float:
        loss, gradients = loss_and_gradients(model, sample)
        mx.eval(loss, gradients)
        return float(loss)

    def turn(steps: int, what: str) -> dict[str, Any]:
        do = {"train": train, "compute": compute}[what]
        do()  # wakes it up
        mx.eval(mx.distributed.all_sum(mx.array(1.0), group=group))
        began = time.perf_counter()
        losses = [do() for _ in range(steps)]
        seconds = (time.perf_counter() - began) / steps
        return {
            "seconds": seconds,
            "loss": sum(losses) / steps,
            "bytes": bytes_of(model),
        }

    serve_requests(group.rank(), turn)


def make_ours(kind: str, model: nn.Module) -> Callable[[Any], None]:
    optimizer = mlxdist.DistributedOptimizer(
        optim.AdamW(1e-3), shard=kind != "ours replicated"
    )
    optimizer.init(model)

    def take_step(gradients: Any) -> None:
        optimizer.update(model, gradients)
        mx.eval(model.parameters(), optimizer.state)

    return take_step


def make_upstream(kind: str, model: nn.Module) -> Callable[[Any], None]:
    optimizer = optim.AdamW(1e-3)
    optimizer.init(model.trainable_parameters())
    state = [model.state, optimizer.state]

    def update(gradients: Any) -> None:
        optimizer.update(model, gradients)

    if kind != "upstream plain":
        update = partial(mx.compile, inputs=state, outputs=state)(update)

    def take_step(gradients: Any) -> None:
        update(nn.average_gradients(gradients))
        mx.eval(state)

    return take_step


def bytes_of(model: nn.Module) -> int:
    leaves = tree_flatten(model.trainable_parameters())
    return sum(leaf.nbytes for _, leaf in leaves)


if __name__ == "__main__":
    main()
