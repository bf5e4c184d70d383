"""Parameters are queued ahead of gradients, whose error would make them wait for ever.

MLX loses the event of all arrays of an `mx.async_eval` that raises at its end.
"""

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import pytest

from tests.support.examples import distributed, loss, rank_batch, seeded_net
from tests.support.lazy_arrays import is_lazy

pytestmark = pytest.mark.mpi


def update(optimizer, model, *examples):
    _, gradients = nn.value_and_grad(model, loss)(model, *examples)
    optimizer.update(model, gradients)


def minimize(optimizer, model, *examples):
    optimizer.minimize(loss, model, *examples)


@pytest.mark.parametrize("step", [update, minimize])
def test_step_queues_the_lazy_parameters_of_a_model_ahead_of_gradients(
    step, monkeypatch, world
):
    model = seeded_net(1)
    optimizer = distributed(world, optim.SGD(0.1), bucket_size=64)
    optimizer.init(model)
    queue, are_lazy = mx.async_eval, []

    def record(*arrays):
        are_lazy.append(is_lazy(model.trainable_parameters()))
        queue(*arrays)

    monkeypatch.setattr(mx, "async_eval", record)
    step(optimizer, model, *rank_batch(world, 0))
    assert are_lazy[:2] == [True, False]
    assert not any(are_lazy[1:])
