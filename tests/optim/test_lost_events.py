"""A model outlives gradients that could not be computed from it.

MLX loses the event of all arrays of an `mx.async_eval` that raises at its end.
"""

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import pytest

import mlxdist
from tests.support.examples import (
    assert_same_bits,
    distributed,
    loss,
    rank_batch,
    seeded_net,
)
from tests.support.lazy_arrays import is_lazy

pytestmark = pytest.mark.mpi


def update(optimizer, model, *examples):
    _, gradients = nn.value_and_grad(model, loss)(model, *examples)
    assert is_lazy(model.trainable_parameters())
    optimizer.update(model, gradients)


def minimize(optimizer, model, *examples):
    optimizer.minimize(loss, model, *examples)


@pytest.mark.parametrize("step", [update, minimize])
def test_model_is_usable_after_an_error_of_its_gradients(step, monkeypatch, world):
    model = seeded_net(1)
    optimizer = distributed(world, optim.SGD(0.1), bucket_size=64)
    optimizer.init(model)
    before = model.parameters()

    def fail(*arrays):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patched:
        patched.setattr(mx, "async_eval", fail)
        with pytest.raises(
            RuntimeError if world.size == 1 else mlxdist.MismatchError,
            match="out of memory",
        ):
            step(optimizer, model, *rank_batch(world, 0))
    assert not is_lazy(model.trainable_parameters())
    assert_same_bits(model.parameters(), before)
    step(optimizer, model, *rank_batch(world, 0))
    assert world.identical(model)
