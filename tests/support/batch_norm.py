"""A model with running statistics, for the tests of buffers, EMA and freezing."""

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim

from tests.support.examples import distributed


class BatchNormNet(nn.Module):
    """With running statistics, a counter and a frozen layer."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.norm = nn.BatchNorm(6)
        self.fixed = nn.Linear(6, 6)
        self.calls = mx.array(0)
        self.freeze(keys=["calls"], recurse=False)
        self.fixed.freeze()

    def __call__(self, x):
        self.calls = self.calls + 1
        return self.fixed(self.norm(self.first(x)))


def loss(model, x):
    return model(x).square().mean()


def rows(step, rank):
    """Return a batch of eight rows, with another mean on each rank."""
    return mx.random.normal((8, 4), key=mx.random.key(100 * step + rank)) + rank


def loss_and_gradients(model, x):
    return nn.value_and_grad(model, loss)(model, x)


def build(world, **options):
    """Return a model with other statistics on each rank, and its optimizer."""
    mx.random.seed(world.rank)
    model = BatchNormNet()
    model.norm.running_mean = mx.full((6,), float(world.rank))
    optimizer = distributed(world, optim.SGD(0.1), **options)
    optimizer.init(model)
    return model, optimizer


def train(model, optimizer, world, steps):
    for step in steps:
        _, grads = loss_and_gradients(model, rows(step, world.rank))
        optimizer.update(model, grads)
