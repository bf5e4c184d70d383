"""An error inside of minimize(): clear on all ranks, and nothing has changed."""

from functools import partial

import mlx.core as mx
import mlx.optimizers as optim
import pytest

import mlxdist
from mlxdist.optim.grad_norm import NonFiniteError
from tests.support.examples import (
    assert_same_bits,
    distributed,
    each_shard,
    each_transport,
    loss,
    rank_batch,
    seeded_net,
)

pytestmark = pytest.mark.mpi


def raising(model, x, y):
    loss(model, x, y)
    raise KeyError("no such column")


def loss_times(factor):
    return lambda model, x, y: loss(model, x, y) * factor


def failing_lazily(model, x, y):
    """Return a loss that MLX can't compute."""
    wrong = mx.linalg.inv(mx.zeros((2, 2)), stream=mx.cpu)
    return loss(model, x, y) + mx.stop_gradient(wrong[0, 0])


def prepared(world, **options):
    model = seeded_net(1)
    optimizer = distributed(world, optim.SGD(0.1), bucket_size=64, **options)
    optimizer.init(model)
    return model, optimizer


@each_shard
@each_transport
@pytest.mark.mpi(min_size=2)
def test_loss_function_that_raises_on_one_rank_is_refused_on_all(
    transport, shard, world
):
    model, optimizer = prepared(world, shard=shard, transport=transport)
    before = model.parameters()
    wanted = "no such column" if world.is_root else "rank 0: the loss function raised"
    with pytest.raises(mlxdist.MismatchError, match=wanted) as refusal:
        optimizer.minimize(
            raising if world.is_root else loss, model, *rank_batch(world, 0)
        )
    assert isinstance(refusal.value.__cause__, KeyError) == world.is_root
    assert_same_bits(model.parameters(), before)
    optimizer.minimize(loss, model, *rank_batch(world, 1))
    assert optimizer.step.item() == 1
    assert world.identical(model)


def test_loss_function_that_raises_leaves_the_model_as_it_was(world):
    model, optimizer = prepared(world)
    before = model.parameters()
    error = KeyError if world.size == 1 else mlxdist.MismatchError
    with pytest.raises(error, match="no such column"):
        optimizer.minimize(raising, model, *rank_batch(world, 0))
    assert_same_bits(model.parameters(), before)
    optimizer.minimize(loss, model, *rank_batch(world, 0))
    assert optimizer.step.item() == 1


def test_loss_function_that_raises_in_a_micro_batch_refuses_the_step(world):
    model, optimizer = prepared(world, accumulate=2)
    before = model.parameters()
    if world.is_root:
        with pytest.raises(KeyError, match="no such column"):
            optimizer.minimize(raising, model, *rank_batch(world, 0))
    else:
        optimizer.minimize(loss, model, *rank_batch(world, 0))
    if world.size > 1:
        with pytest.raises(mlxdist.MismatchError, match="micro-batch 1: the loss"):
            optimizer.minimize(loss, model, *rank_batch(world, 1))
    assert_same_bits(model.parameters(), before)
    for step in range(2):
        optimizer.minimize(loss, model, *rank_batch(world, step))
    assert optimizer.step.item() == 1


@each_shard
@pytest.mark.mpi(min_size=2)
@pytest.mark.fails_in_mlx
def test_loss_that_cannot_be_computed_on_one_rank_leaves_no_rank_behind(shard, world):
    model, optimizer = prepared(world, shard=shard, transport="host")
    optimizer.minimize(loss, model, *rank_batch(world, 0))
    function = failing_lazily if world.is_root else loss
    failed = None
    try:
        optimizer.minimize(function, model, *rank_batch(world, 1))
    except (RuntimeError, mlxdist.MismatchError) as error:
        failed = error
    assert failed is not None or not world.is_root
    if not isinstance(failed, mlxdist.MismatchError):
        with pytest.raises(mlxdist.MismatchError, match="factorization"):
            optimizer.minimize(loss, model, *rank_batch(world, 2))
    optimizer.init(model)
    optimizer.minimize(loss, model, *rank_batch(world, 3))
    assert world.identical(model)


@each_shard
def test_gradients_that_are_not_finite_name_the_loss_and_change_nothing(shard, world):
    model, optimizer = prepared(world, shard=shard, transport="host", max_norm=1.0)
    before = model.parameters()
    factor = float("nan") if world.is_root else 1.0
    with pytest.raises(NonFiniteError, match="rank 0: its loss is nan; of the means"):
        optimizer.minimize(loss_times(factor), model, *rank_batch(world, 0))
    assert_same_bits(model.parameters(), before)
    assert optimizer.step.item() == 0


def test_gradients_that_are_not_finite_are_taken_without_the_check(world):
    model, optimizer = prepared(world, shard=True, check_finite=False)
    optimizer.minimize(loss_times(float("nan")), model, *rank_batch(world, 0))
    assert mx.isnan(model.head.weight).all().item()


@pytest.mark.mpi(min_size=2)
def test_minimize_and_update_at_once_are_refused_on_all_ranks(world):
    model, optimizer = prepared(world)
    call = partial(optimizer.update, model, model.trainable_parameters())
    if world.is_root:
        call = partial(optimizer.minimize, loss, model, *rank_batch(world, 0))
    with pytest.raises(mlxdist.MismatchError, match=r"\.minimize"):
        call()


@pytest.mark.parametrize(
    "options", [{"max_norm": 1.0}, {"skip_nonfinite": True}, {"loss_scale": "dynamic"}]
)
def test_check_finite_false_with_what_needs_the_check_is_refused(options, world):
    with pytest.raises(ValueError, match="check_finite=False looks at no gradient"):
        distributed(world, check_finite=False, **options)


def test_minimize_with_nothing_to_train_is_refused_on_all_ranks(world):
    model, optimizer = prepared(world)
    model.freeze()
    kind = mlxdist.MismatchError if world.size > 1 else ValueError
    with pytest.raises(kind, match="has no trainable parameters: unfreeze"):
        optimizer.minimize(loss, model, *rank_batch(world, 0))
    model.unfreeze()
    optimizer.init(model)
    optimizer.minimize(loss, model, *rank_batch(world, 0))
    assert optimizer.step.item() == 1
