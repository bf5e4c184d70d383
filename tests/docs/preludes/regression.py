"""A linear model, and data whose last batch leaves most ranks without an example."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np

import mlxdist

world = mlxdist.init()
count = 32 * world.size + 1
data = mx.array(np.linspace(-1, 1, 2 * count, dtype=np.float32).reshape(count, 2))
model = nn.Linear(2, 1)
batches = [(data[start : start + 8], mx.ones((8, 1))) for start in range(0, 32, 8)]
sampler = mlxdist.ShardedSampler(count, world=world, batch_size=32)


def loss_fn(model, x, y=0):
    return (model(x) - y).square().mean()


def evaluate(model):
    return loss_fn(model, data).item()


loss_and_grad = nn.value_and_grad(model, loss_fn)
