"""The phases of a step over each transport, and traced by mx.compile."""

from functools import partial

import mlx.core as mx
import mlx.optimizers as optim
import pytest

from tests.support.compiled import compiled_update
from tests.support.examples import (
    assert_same_bits,
    batch,
    distributed,
    distributed_with_masters,
    each_shard,
    each_transport,
    largest_difference,
    loss_and_gradients,
    mean_of,
    rank_batch,
    seeded_net,
    update,
)

pytestmark = pytest.mark.mpi


@each_shard
@each_transport
def test_update_of_16_bit_gradients_adds_in_float32(shard, transport, world):
    """A bfloat16 all-reduce rounds at every hop: 256 + 1 + 1 + 1 = 258."""
    value = 256.0 if world.rank == 0 else 1.0
    grads = {"w": mx.full((5,), value, mx.bfloat16)}
    tree = {"w": mx.zeros((5,), mx.bfloat16)}
    total = 256.0 + world.size - 1
    expected = mx.array(total / world.size).astype(mx.bfloat16).item()
    optimizer = distributed(world, optim.SGD(1.0), shard=shard, transport=transport)
    result = optimizer.apply_gradients(grads, tree)
    assert result["w"].tolist() == [-expected] * 5


@each_shard
@each_transport
def test_update_of_a_model_in_small_buckets_matches_apply_gradients(
    shard, transport, world
):
    """Each bucket's parameters are published in the model as soon as they arrive."""

    def build(**options):
        model = seeded_net(3)
        optimizer = distributed(world, shard=shard, transport=transport, **options)
        optimizer.init(model)
        return model, optimizer

    model, optimizer = build(bucket_size=64)
    frozen = model.frozen.weight
    other, reference = build()
    for step in range(3):
        x, y = rank_batch(world, step)
        update(model, optimizer, x, y)
        _, grads = loss_and_gradients(other, x, y)
        other.update(reference.apply_gradients(grads, other.trainable_parameters()))
    assert model.frozen.weight is frozen
    assert_same_bits(model.parameters(), other.parameters())
    assert world.identical(model)


# -- inside mx.compile


@each_shard
@pytest.mark.parametrize("max_norm", [None, 0.05])
def test_compiled_step_trains_as_an_eager_one(shard, max_norm, world):
    """The whole step in mx.compile: model and optimizer state captured."""

    def build():
        model = seeded_net(4)
        optimizer = distributed(
            world, shard=shard, max_norm=max_norm, transport="native"
        )
        optimizer.init(model)
        return model, optimizer

    model, optimizer = build()
    step = compiled_update(model, optimizer)
    twin, eager = build()
    for number in range(5):
        x, y = rank_batch(world, number)
        expected = update(twin, eager, x, y)
        assert step(x, y).item() == pytest.approx(expected.item(), rel=1e-5)
    assert optimizer.step.item() == 5
    assert largest_difference(model.parameters(), twin.parameters()) < 1e-6
    assert world.identical(model)


def test_grad_norm_of_a_compiled_step_is_refused(world):
    model = seeded_net(4)
    optimizer = distributed(world, max_norm=0.05, transport="native")
    optimizer.init(model)
    compiled_update(model, optimizer)(*rank_batch(world, 0))
    with pytest.raises(ValueError, match=r"inside mx\.compile"):
        _ = optimizer.grad_norm


@each_shard
def test_compiled_step_takes_a_learning_rate_set_between_steps(shard, world):
    model, twin = seeded_net(1), seeded_net(1)
    optimizer = distributed(
        world, optim.SGD(1e-1, momentum=0.5), shard=shard, transport="native"
    )
    reference = optim.SGD(1e-1, momentum=0.5)
    optimizer.init(model)
    step = compiled_update(model, optimizer)
    for number in range(4):
        x, y = batch(number, 4)
        step(x, y)
        update(twin, reference, x, y)
        optimizer.learning_rate = reference.learning_rate = 0.1 / (number + 2)
    assert largest_difference(model.parameters(), twin.parameters()) < 1e-6


def test_compiled_step_keeps_its_state_when_init_is_called_again(world):
    model = seeded_net(0)
    optimizer = distributed(world, shard=True, transport="native")
    optimizer.init(model)
    step = compiled_update(model, optimizer)
    step(*batch(0, 4))
    optimizer.init(model)
    step(*batch(1, 4))
    assert optimizer.step.item() == 2


@each_shard
def test_compiled_step_captures_master_weights(shard, world):
    tree = {"w": mx.ones(4, mx.bfloat16)}
    optimizer = distributed_with_masters(
        world, optim.SGD(1e-3), shard=shard, transport="native"
    )
    optimizer.init(tree)
    captured = {"tree": tree}
    state = [captured, optimizer.state]

    @partial(mx.compile, inputs=state, outputs=state)
    def step(grads):
        captured["tree"] = optimizer.apply_gradients(grads, captured["tree"])

    for _ in range(10):
        step({"w": mx.ones(4, mx.bfloat16)})
        mx.eval(state)
    expected = mx.array(0.99).astype(mx.bfloat16).item()
    assert captured["tree"]["w"].tolist() == [expected] * 4


def compiled_apply(world, inner=None, **options):
    """Return a compiled apply_gradients(gradients, weight) on four zeros."""
    optimizer = distributed(world, inner or optim.SGD(1.0), **options)
    tree = {"w": mx.zeros(4)}
    optimizer.init(tree)

    @partial(mx.compile, inputs=optimizer.state, outputs=optimizer.state)
    def step(x, weight=None):
        return optimizer.apply_gradients({"w": x.mean(axis=0)}, tree, weight=weight)

    return step


def test_compiled_step_takes_a_traced_weight(world):
    step = compiled_apply(world, transport="native")
    for scale in (1.0, 2.0):
        weight = mx.array(scale * world.rank + 1)
        result = step(mx.full((1, 4), float(world.rank)), weight)
        weights = [scale * rank + 1 for rank in range(world.size)]
        values = [mx.array(float(rank)) for rank in range(world.size)]
        expected = -mean_of(values, weights).item()
        assert result["w"][0].item() == pytest.approx(expected)


@pytest.mark.mpi(min_size=2)
def test_compiled_step_with_a_traced_weight_of_0_leaves_out_what_is_nan(world):
    """And takes it in when the same compiled step gets another weight."""
    step = compiled_apply(world, transport="native")
    is_last = world.rank == world.size - 1
    local = mx.full((1, 4), float("nan") if is_last else 3.0)
    result = step(local, mx.array(0.0 if is_last else 2.0))
    assert result["w"].tolist() == [-3.0] * 4
    result = step(local, mx.array(1.0))
    assert mx.all(mx.isnan(result["w"])).item()


def test_compiled_step_may_be_traced_again_on_one_rank(world):
    """For a last batch of another shape, which only some ranks have."""
    step = compiled_apply(world, transport="native")
    for rows in ([2] * world.size, [2 - rank % 2 for rank in range(world.size)]):
        count = rows[world.rank]
        x = mx.full((count, 4), float(world.rank))
        result = step(x, mx.array(float(count)))
        expected = sum(r * n for r, n in enumerate(rows)) / sum(rows)
        assert result["w"][0].item() == pytest.approx(-expected)


def test_compiled_step_over_the_host_transport_is_refused(world):
    step = compiled_apply(world, transport="host")
    with pytest.raises(ValueError, match='transport="native"'):
        step(mx.ones((1, 4)))


def test_compiled_step_with_skip_nonfinite_is_refused(world):
    step = compiled_apply(world, skip_nonfinite=True)
    with pytest.raises(ValueError, match="skip_nonfinite"):
        step(mx.ones((1, 4)))


@pytest.mark.parametrize(
    "options", [{"accumulate": 2}, {"sync_buffers": "mean"}, {"reproducible": True}]
)
def test_compiled_step_with_an_option_for_eager_steps_is_refused(options, world):
    step = compiled_apply(world, **options)
    with pytest.raises(ValueError, match="compile the computation of loss"):
        step(mx.ones((1, 4)))


@each_shard
@pytest.mark.mpi(min_size=2)
def test_update_over_the_native_transport_adds_in_the_reduce_dtype(shard, world):
    grads = {"w": mx.full((5,), 1 + 2.0**-10)}  # 1 in bfloat16
    options = {"transport": "native", "reduce_dtype": mx.bfloat16}
    optimizer = distributed(world, optim.SGD(1.0), shard=shard, **options)
    result = optimizer.apply_gradients(grads, {"w": mx.zeros(5)})
    assert result["w"].tolist() == [-1.0] * 5
