"""All that saves memory at once, against plain MLX in float32."""

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import pytest

from tests.support.examples import distributed

MICRO_BATCHES, ROWS, WIDTH, STEPS = 2, 12, 64, 40
MAX_NORM = 0.05

pytestmark = pytest.mark.mpi


class Regressor(nn.Module):
    """Two matrices of 64 x 64, which are large enough for state in 8 bits."""

    def __init__(self):
        super().__init__()
        mx.random.seed(3)
        self.hidden = nn.Linear(WIDTH, WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)

    def __call__(self, x):
        return self.out(nn.relu(self.hidden(x)))


def loss_of(model, x, y):
    dtype = model.out.weight.dtype
    return ((model(x.astype(dtype)).astype(mx.float32) - y) ** 2).mean()


def examples(step):
    """Return the rows of a step, of all micro-batches, and a linear map of them."""
    truth = mx.random.normal((WIDTH, WIDTH), key=mx.random.key(7)) / 8
    x = mx.random.normal((MICRO_BATCHES * ROWS, WIDTH), key=mx.random.key(100 + step))
    return x, x @ truth


def train_in_mlx():
    """Return the model that MLX alone trains on all rows, in float32."""
    model, optimizer = Regressor(), optim.AdamW(3e-3)
    value_and_grad = nn.value_and_grad(model, loss_of)
    for step in range(STEPS):
        _, gradients = value_and_grad(model, *examples(step))
        clipped, _ = optim.clip_grad_norm(gradients, MAX_NORM)
        optimizer.update(model, clipped)
    return model


def test_minimize_in_24_bits_with_8_bit_state_reaches_the_loss_of_plain_mlx(world):
    model = Regressor()
    model.set_dtype(mx.bfloat16)
    optimizer = distributed(
        world,
        optim.AdamW(3e-3),
        shard=True,
        state_dtype="int8",
        master_dtype="24bit",
        accumulate=MICRO_BATCHES,
        max_norm=MAX_NORM,
    )
    optimizer.init(model)
    before = loss_of(model, *examples(STEPS)).item()
    for step in range(STEPS):
        x, y = examples(step)
        for start in range(0, len(x), ROWS):  # 12 rows: 1, 2, 3 and 4 ranks divide them
            mine = slice(start + world.rank, start + ROWS, world.size)
            optimizer.minimize(loss_of, model, x[mine], y[mine])
    assert world.identical(model)
    after = loss_of(model, *examples(STEPS)).item()
    plain = loss_of(train_in_mlx(), *examples(STEPS)).item()
    assert after < 0.5 * before
    assert after == pytest.approx(plain, rel=0.02)
