"""Gradients of one rank that can't be evaluated: no rank waits, and all raise."""

from functools import partial

import mlx.core as mx
import mlx.optimizers as optim
import pytest
from mlx.utils import tree_map

import mlxdist
from mlxdist.comm import window
from tests.support.bad_arrays import array_of_a_thread_that_ended, inverse_of_zeros
from tests.support.examples import (
    assert_same_bits,
    distributed,
    each_transport,
    gradients,
    gradients_of_ranks,
    linear_layers,
    mean_of,
)

pytestmark = [pytest.mark.mpi, pytest.mark.fails_in_mlx]


each_failing = pytest.mark.parametrize(
    "failing", [array_of_a_thread_that_ended, inverse_of_zeros]
)


shards = pytest.mark.parametrize("shard", [False, "elements"])


def with_a_failing_weight(grads, failing):
    bad = tree_map(lambda leaf: leaf, grads)
    bad["layers"][0]["weight"] = failing()
    return bad


@shards
@pytest.mark.parametrize(
    ("failing", "transport", "in_flight"),
    [
        (array_of_a_thread_that_ended, "native", 0),
        (array_of_a_thread_that_ended, "native", window.IN_FLIGHT),
        (array_of_a_thread_that_ended, "host", 0),
        (inverse_of_zeros, "host", 0),
        (inverse_of_zeros, "native", 0),
        (inverse_of_zeros, "native", window.IN_FLIGHT),
    ],
)
def test_gradient_of_a_later_bucket_that_cannot_be_evaluated_leaves_no_rank_behind(
    in_flight, failing, transport, shard, monkeypatch, world
):
    monkeypatch.setattr(window, "IN_FLIGHT", in_flight)
    options = {"transport": transport, "shard": shard, "bucket_size": 8}
    optimizer = distributed(world, optim.SGD(0.5), **options)
    model = linear_layers()
    grads = gradients(model.trainable_parameters(), 0, world.rank)
    optimizer.init(model)
    optimizer.update(model, grads)
    if world.is_root:
        with pytest.raises(RuntimeError, match=r"Stream|factorization"):
            optimizer.update(model, with_a_failing_weight(grads, failing))
    else:
        optimizer.update(model, grads)
    with pytest.raises(mlxdist.MismatchError, match="step 2 ended with RuntimeError"):
        optimizer.update(model, grads)
    optimizer.init(model)
    optimizer.update(model, grads)
    assert world.identical(model)


@each_transport
@each_failing
@pytest.mark.mpi(min_size=2)
def test_first_gradients_that_cannot_be_evaluated_are_refused_on_all_ranks(
    failing, transport, world
):
    optimizer = distributed(world, optim.SGD(0.5), transport=transport, bucket_size=8)
    model = linear_layers()
    before = model.parameters()
    optimizer.init(model)
    grads = gradients(model.trainable_parameters(), 0, world.rank)
    bad = with_a_failing_weight(grads, failing) if world.is_root else grads
    with pytest.raises(mlxdist.MismatchError, match=r"Stream|factorization"):
        optimizer.update(model, bad)
    assert_same_bits(model.parameters(), before)
    optimizer.update(model, grads)
    assert world.identical(model)
    assert optimizer.step.item() == 1


@pytest.mark.mpi(min_size=2)
def test_micro_batch_that_cannot_be_evaluated_refuses_its_step_on_all_ranks(world):
    optimizer = distributed(world, optim.SGD(0.5), accumulate=3, bucket_size=8)
    model = linear_layers()
    before = model.parameters()
    optimizer.init(model)
    grads = gradients(model.trainable_parameters(), 0, world.rank)
    bad = with_a_failing_weight(grads, array_of_a_thread_that_ended)
    optimizer.update(model, bad if world.is_root else grads)
    optimizer.update(model, grads)
    with pytest.raises(mlxdist.MismatchError, match=r"rank 0: micro-batch 1: .*Stream"):
        optimizer.update(model, grads)
    assert_same_bits(model.parameters(), before)
    for _ in range(3):
        optimizer.update(model, grads)
    assert world.identical(model)
    assert optimizer.step.item() == 1


@pytest.mark.mpi(min_size=2)
def test_parameter_that_cannot_be_evaluated_refuses_a_repeated_init_on_all_ranks(world):
    optimizer = distributed(world, optim.SGD(0.5))
    model = linear_layers()
    optimizer.init(model)
    weight = model.layers[0].weight
    if world.is_root:
        model.layers[0].weight = array_of_a_thread_that_ended()
    with pytest.raises(mlxdist.MismatchError, match=r"rank 0: RuntimeError: .*Stream"):
        optimizer.init(model)
    model.layers[0].weight = weight
    optimizer.init(model)
    assert world.identical(model)


@pytest.mark.mpi(min_size=2)
def test_error_of_another_stream_is_refused_on_all_ranks_after_init(world, monkeypatch):
    """MLX raises it where init returns freed memory, when it has succeeded."""
    optimizer, model = distributed(world, optim.SGD(0.5)), linear_layers()

    def clear_cache():
        monkeypatch.undo()
        raise RuntimeError("of another stream")

    if world.is_root:
        monkeypatch.setattr(mx, "clear_cache", clear_cache)
    optimizer.init(model)
    grads = gradients(model.trainable_parameters(), 0, world.rank)
    with pytest.raises(mlxdist.MismatchError, match=r"rank 0: .*of another stream"):
        optimizer.update(model, grads)
    optimizer.update(model, grads)
    assert world.identical(model)


class FailingLazily(optim.SGD):
    """Returns parameters that can't be evaluated, where it fails."""

    elementwise = True
    _fails = False

    def apply_single(self, gradient, parameter, state):
        stepped = super().apply_single(gradient, parameter, state)
        return stepped + inverse_of_zeros()[0, 0] if self._fails else stepped


@shards
@pytest.mark.parametrize(("transport", "in_flight"), [("host", 0)])
def test_new_parameters_that_cannot_be_evaluated_leave_no_rank_behind(
    in_flight, transport, shard, monkeypatch, world
):
    monkeypatch.setattr(window, "IN_FLIGHT", in_flight)
    inner = FailingLazily(0.5)
    optimizer = distributed(
        world, inner, transport=transport, shard=shard, bucket_size=8
    )
    model = linear_layers()
    grads = gradients(model.trainable_parameters(), 0, world.rank)
    optimizer.init(model)
    optimizer.update(model, grads)
    inner._fails = world.is_root
    if world.is_root:
        with pytest.raises(RuntimeError, match="factorization"):
            optimizer.update(model, grads)
    else:
        optimizer.update(model, grads)
    inner._fails = False
    with pytest.raises(mlxdist.MismatchError, match="step 2 ended with RuntimeError"):
        optimizer.update(model, grads)
    optimizer.init(model)
    optimizer.update(model, grads)
    assert world.identical(model)


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize(
    ("failing", "bucket_size", "error"),
    [
        (inverse_of_zeros, 8, "factorization"),
        (inverse_of_zeros, 2**20, "factorization"),
        (array_of_a_thread_that_ended, 2**20, "Stream"),
    ],
)
def test_average_gradients_that_cannot_be_evaluated_leaves_no_rank_behind(
    failing, bucket_size, error, world
):
    """Zeros stand for them, and not what MLX leaves in their memory."""
    every = gradients_of_ranks(linear_layers().trainable_parameters(), 0, world.size)
    grads = every[world.rank]
    average = partial(mlxdist.average_gradients, world=world, bucket_size=bucket_size)
    if world.is_root:
        with pytest.raises(RuntimeError, match=error):
            average(with_a_failing_weight(grads, failing))
    else:
        every[0]["layers"][0]["weight"] = mx.zeros((3, 3))
        failed = average(grads)["layers"][0]["weight"]
        assert_same_bits(failed, mean_of(every)["layers"][0]["weight"])
    with pytest.raises(mlxdist.MismatchError, match=rf"ended with .*{error}"):
        average(grads)
    mx.eval(average(grads))
