"""One run of `state_dtype`: trains a model with one variant of the optimizer.

state_dtype_rank.py TASK VARIANT SEED STEPS FILE, on as many ranks as the variant has.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_map

import mlxdist
from mlxdist.arrays.types import Dtype
from ranks.transformer import (
    Transformer,
    loss_of,
    make_optimizer,
    read_corpus,
    windows,
)

HELD_OUTS = 20  # in a run
FLOAT32 = "float32"
PERTURBED = "float32, perturbed"
AFFINE = "per-tensor affine"
BFLOAT16 = "bfloat16"
MEANS = "bfloat16, means too"


class Variant(NamedTuple):
    """What a run trains with.

    Attributes:
        options: of DistributedOptimizer.
        reference: the variant that its losses are compared with.
        ranks: that share out each batch.
        dtype: of the parameters.
    """

    options: dict[str, Any]
    reference: str = FLOAT32
    ranks: int = 1
    dtype: Dtype = mx.float32


# One rank's mean gradient has 16 bits anyway.
_MIXED: dict[str, Any] = {"shard": True, "master_dtype": mx.float32}
# Embeddings keep float32 state by default.
VARIANTS = {
    FLOAT32: Variant({}),
    PERTURBED: Variant({}),
    "int8": Variant({"state_dtype": "int8"}),
    "int8, embeddings too": Variant({"state_dtype": "int8", "float32_state": ()}),
    AFFINE: Variant({"shard": "tensors"}),
    BFLOAT16: Variant(_MIXED, BFLOAT16, 2, mx.bfloat16),
    MEANS: Variant({**_MIXED, "mean_dtype": mx.bfloat16}, BFLOAT16, 2, mx.bfloat16),
}


class AffineAdamW(optim.AdamW):
    """AdamW whose second moment has 8 bits, affine, one range for each tensor.

    A range from 0 to the largest value gives most elements the code 0, so that their
    steps are divided by epsilon: the reason for blocks and roots.
    """

    def apply_single(
        self, gradient: mx.array, parameter: mx.array, state: dict[str, mx.array]
    ) -> mx.array:
        updated = super().apply_single(gradient, parameter, state)
        state["v"] = round_affine(state["v"])
        return updated


def round_affine(values: mx.array) -> mx.array:
    """Round to the nearest of 256 values from the least to the largest."""
    low, high = values.min(), values.max()
    scale = mx.maximum((high - low) / 255, 1e-38)
    return low + scale * mx.round((values - low) / scale)


class BytePredictor(nn.Module):
    """A perceptron over embeddings: (batch, 9) of bytes, of which 8 predict the last.

    Its 53,000 parameters train in a millisecond a step.
    """

    def __init__(self, *, context: int = 8, width: int = 16, hidden: int = 128):
        super().__init__()
        self.embedding = nn.Embedding(256, width)
        self.hidden = nn.Linear(context * width, hidden)
        self.norm = nn.RMSNorm(hidden)
        self.head = nn.Linear(hidden, 256, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        x = self.embedding(x).reshape(x.shape[0], -1)
        return self.head(self.norm(nn.relu2(self.hidden(x))))


def loss_of_bytes(model: nn.Module, x: mx.array) -> mx.array:
    """Return the mean cross-entropy of the last byte of each row, in nats."""
    logits = model(x[:, :-1]).astype(mx.float32)
    return nn.losses.cross_entropy(logits, x[:, -1], reduction="mean")


class Task:
    """A model, its loss, its text, and its optimizer.

    "main" is the job of launch/train_lm.py with its defaults. "small" takes many steps
    at a constant rate with AdamW's default betas: its second moment is an average of
    1000 steps, which rounding may freeze.
    """

    def __init__(self, name: str, steps: int):
        small = name == "small"
        self.steps, self.small = steps, small
        self.rows, context = (16, 8) if small else (12, 128)
        self.loss_of: Callable[..., mx.array] = loss_of_bytes if small else loss_of
        corpus = read_corpus()
        self.text = windows(corpus.train, context, "to train on")
        held_out = windows(corpus.held_out, context, "to hold out")
        wanted = 1000 if small else 120
        self.held_out = mx.array(held_out[:: max(1, len(held_out) // wanted)])

    def make_model(self) -> nn.Module:
        return BytePredictor() if self.small else Transformer()

    def make_optimizer(self) -> optim.Optimizer:
        if self.small:
            return optim.AdamW(1e-3, weight_decay=0.1)
        return make_optimizer("adamw", self.steps)


def train(
    task: Task, variant: str, seed: int, steps: int
) -> tuple[list[float], list[float]]:
    """Return the training loss of each step, and HELD_OUTS held-out losses."""
    world = mlxdist.init()
    mx.random.seed(seed)
    model = task.make_model()
    model.set_dtype(VARIANTS[variant].dtype)
    if variant == PERTURBED:
        model.update(_perturbed(model.parameters()))
    optimizer = wrap(task.make_optimizer(), variant)
    optimizer.init(model)
    value_and_grad = nn.value_and_grad(model, task.loss_of)
    random = np.random.default_rng(seed)
    losses, held_out = [], []
    for step in range(1, steps + 1):
        batch = mx.array(task.text[random.integers(0, len(task.text), task.rows)])
        loss, gradients = value_and_grad(model, batch[world.rank :: world.size])
        optimizer.update(model, gradients)
        mx.eval(loss, model.state, optimizer.state)
        losses.append(world.mean(loss.item()))
        if step * HELD_OUTS % steps < HELD_OUTS:
            held_out.append(task.loss_of(model, task.held_out).item())
    return losses, held_out


def wrap(optimizer: optim.Optimizer, variant: str) -> mlxdist.DistributedOptimizer:
    if variant == AFFINE:
        optimizer.__class__ = AffineAdamW
    return mlxdist.DistributedOptimizer(
        optimizer, max_norm=1.0, **VARIANTS[variant].options
    )


def _perturbed(parameters: Any) -> Any:
    """Return parameters changed in their last bit: what chance does to a run."""
    return tree_map(lambda p: p * (1 + 2**-23), parameters)


def main() -> None:
    name, variant, seed, steps, file = sys.argv[1:]
    losses, held_out = train(Task(name, int(steps)), variant, int(seed), int(steps))
    if mlxdist.init().rank != 0:
        return
    result = {"losses": losses, "held_out": held_out}
    temporary = Path(f"{file}.{os.getpid()}")
    temporary.write_text(json.dumps(result))
    temporary.replace(file)


if __name__ == "__main__":
    main()
