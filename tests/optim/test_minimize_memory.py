"""minimize() never holds all gradients: the peak of MLX's memory says so."""

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import pytest

from tests.support.examples import distributed

pytestmark = pytest.mark.mpi

LAYERS, WIDTH = 32, 724  # 32 tensors of 2 MiB
GRADIENTS = LAYERS * WIDTH * WIDTH * 4  # bytes


class Deep(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = [nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)]

    def __call__(self, x):
        for layer in self.layers:
            x = mx.tanh(1.8 * layer(x))  # so that no moment is subnormal
        return x


def loss(model, x):
    return model(x).square().mean()


def minimize(optimizer, model, x):
    optimizer.minimize(loss, model, x)


def update(optimizer, model, x):
    _, gradients = nn.value_and_grad(model, loss)(model, x)
    optimizer.update(model, gradients)


def peak_of_step(world, take_step=minimize, **options):
    """Return the peak above what was there before, as a multiple of the gradients."""
    model = Deep()
    x = mx.random.normal((8, WIDTH), key=mx.random.key(world.rank))
    optimizer = distributed(world, optim.AdamW(1e-4), **options)
    optimizer.init(model)
    mx.eval(model.parameters(), optimizer.state, x)
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    for _ in range(min(2, options.get("accumulate", 1))):
        take_step(optimizer, model, x)  # the first step is no exception
    return (mx.get_peak_memory() - before) / GRADIENTS


@pytest.mark.parametrize("transport", ["host"])
def test_minimize_holds_this_ranks_share_of_the_means(transport, world):
    most = 0.2 + 1 / world.size
    assert peak_of_step(world, shard=True, transport=transport) <= most


@pytest.mark.long
def test_minimize_of_micro_batches_holds_their_sums_alone(world):
    options = {"accumulate": 4, "shard": True, "transport": "host"}
    assert peak_of_step(world, **options) <= 1.2  # of two of them


@pytest.mark.long
def test_minimize_without_check_holds_no_means(world):
    most = 0.25 if world.size == 1 else 0.5
    assert peak_of_step(world, check_finite=False, shard=True) <= most


def test_update_that_clips_holds_no_gradient_twice_on_one_rank(world):
    """They are transposed: those of `x @ weight.T`."""
    means = 1 / world.size if world.size > 1 else 0
    assert peak_of_step(world, update, max_norm=1.0, shard=True) <= 1.3 + means
