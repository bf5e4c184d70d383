"""minimize() gives the same bits as nn.value_and_grad() and update()."""

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_map

from tests.support.examples import (
    CLASSES,
    assert_same_bits,
    batch,
    distributed,
    each_shard,
    loss,
    make,
    rank_batch,
    seeded_net,
    shard_modes,
    update,
)

pytestmark = pytest.mark.mpi


def assert_trained_alike(world, make_optimizer, *, dtype=mx.float32):
    """Assert that both ways give the same losses, parameters, state and norms."""
    model, twin = seeded_net(1), seeded_net(1)
    for each in (model, twin):
        each.set_dtype(dtype)
    optimizer, reference = make_optimizer(), make_optimizer()
    optimizer.init(model)
    reference.init(twin)
    for step in range(2):
        x, y = rank_batch(world, step)
        x, y = x.astype(dtype), y.astype(dtype)
        value = optimizer.minimize(loss, model, x, y)
        assert value.item() == update(twin, reference, x, y).item()
    assert_same_bits(model.parameters(), twin.parameters())
    assert_same_bits(optimizer.gather_state(), reference.gather_state())
    assert world.identical(model)
    return optimizer, reference


ways = pytest.mark.parametrize(
    ("shard", "transport"), [(False, "native"), ("elements", "host")]
)


@pytest.mark.parametrize("name", CLASSES)
def test_minimize_of_each_class_has_the_bits_of_update(name, world):
    for shard in shard_modes(name):
        o = {"shard": shard, "transport": "host", "bucket_size": 64}
        assert_trained_alike(world, lambda o=o: distributed(world, make(name), **o))


@ways
@pytest.mark.parametrize(
    "options",
    [
        {"max_norm": 0.05},
        {"skip_nonfinite": True, "ema_decay": 0.9},
        {"reproducible": True, "max_norm": 0.05},
        {"check_finite": False, "bucket_size": 1},
    ],
    ids=str,
)
def test_minimize_with_options_has_the_bits_of_update(options, transport, shard, world):
    options = {"bucket_size": 200, "shard": shard, "transport": transport, **options}
    both = assert_trained_alike(world, lambda: distributed(world, **options))
    if "max_norm" in options:
        assert both[0].grad_norm.item() == both[1].grad_norm.item()


@pytest.mark.parametrize("shard", [False, True])
@pytest.mark.parametrize("options", [{}, {"master_dtype": mx.float32}], ids=str)
def test_minimize_of_16_bit_parameters_has_the_bits_of_update(options, shard, world):
    options = {"shard": shard, "transport": "host", "max_norm": 0.1, **options}
    assert_trained_alike(
        world, lambda: distributed(world, **options), dtype=mx.bfloat16
    )


@pytest.mark.usefixtures("compiled_always")
def test_minimize_of_compiled_updates_has_the_bits_of_update(world):
    options = {"shard": "elements", "transport": "host", "bucket_size": 128}
    assert_trained_alike(world, lambda: distributed(world, **options))


@each_shard
def test_minimize_of_weighted_micro_batches_has_the_bits_of_update(shard, world):
    models = [seeded_net(2), seeded_net(2)]
    options = {"shard": shard, "transport": "host", "accumulate": 2}
    optimizers = [distributed(world, **options) for _ in models]
    for optimizer, model in zip(optimizers, models, strict=True):
        optimizer.init(model)
    for step in range(6):
        x, y = rank_batch(world, step)
        optimizers[0].minimize(loss, models[0], x, y, weight=1 + 2.5 * world.rank)
        _, grads = nn.value_and_grad(models[1], loss)(models[1], x, y)
        optimizers[1].update(models[1], grads, weight=1 + 2.5 * world.rank)
    assert optimizers[0].step.item() == 3
    assert_same_bits(models[0].parameters(), models[1].parameters())


def test_minimize_in_no_sync_adds_up(world):
    model, twin = seeded_net(2), seeded_net(2)
    optimizer = distributed(world, optim.SGD(0.1), shard=True)
    reference = distributed(world, optim.SGD(0.1), shard=True, accumulate=2)
    for each, of in ((optimizer, model), (reference, twin)):
        each.init(of)
    with optimizer.no_sync():
        optimizer.minimize(loss, model, *rank_batch(world, 0))
    optimizer.minimize(loss, model, *rank_batch(world, 1))
    for step in range(2):
        update(twin, reference, *rank_batch(world, step))
    assert_same_bits(model.parameters(), twin.parameters())


@pytest.mark.parametrize("scale", [8.0, "dynamic"])
def test_minimize_scales_the_loss_and_returns_the_unscaled_one(scale, world):
    """Powers of two: gradients of float32 have the same bits, scaled and unscaled."""
    model, twin = seeded_net(3), seeded_net(3)
    optimizer = distributed(world, loss_scale=scale, shard=True, transport="host")
    reference = distributed(world, shard=True, transport="host")
    scaled = []

    def scaled_loss(model, x, y):
        value = loss(model, x, y)
        scaled.append(value)
        return value, {"rows": x.shape[0]}

    optimizer.init(model)
    reference.init(twin)
    for step in range(3):
        x, y = rank_batch(world, step)
        value, others = optimizer.minimize(scaled_loss, model, x, y)
        assert others == {"rows": 4}
        assert value.item() == update(twin, reference, x, y).item()
    assert len(scaled) == 3
    assert_same_bits(model.parameters(), twin.parameters())


def test_minimize_returns_all_outputs_and_passes_keywords(world):
    def outputs(model, x, *, target, name):
        prediction = model(x)
        return nn.losses.mse_loss(prediction, target), prediction, [name]

    model = seeded_net(3)
    optimizer = distributed(world)
    optimizer.init(model)
    x, y = rank_batch(world, 0)
    expected = seeded_net(3)(x)
    value, prediction, names = optimizer.minimize(
        outputs, model, x, target=y, name="mean"
    )
    assert value.item() == nn.losses.mse_loss(expected, y).item()
    assert_same_bits([prediction], [expected])
    assert names == ["mean"]


def test_minimize_leaves_frozen_parameters_and_steps_unused_ones(world):
    model, twin = seeded_net(4), seeded_net(4)
    frozen = model.frozen.weight.tolist()

    def only_the_norm(model, x, y):
        return (model.norm(x[:, :1] * mx.ones(10)) - 1).square().mean()

    optimizer = distributed(world, optim.AdamW(0.1, weight_decay=0.1), shard=True)
    reference = distributed(world, optim.AdamW(0.1, weight_decay=0.1), shard=True)
    optimizer.init(model)
    reference.init(twin)
    for step in range(2):
        x, y = rank_batch(world, step)
        optimizer.minimize(only_the_norm, model, x, y)
        _, grads = nn.value_and_grad(twin, only_the_norm)(twin, x, y)
        reference.update(twin, grads)
    assert model.frozen.weight.tolist() == frozen
    assert model.head.weight.tolist() != seeded_net(4).head.weight.tolist()  # decayed
    assert_same_bits(model.parameters(), twin.parameters())


def test_minimize_of_a_dict_of_arrays_replaces_them(world):
    def distance(parameters, x):
        return (parameters["w"] * x).sum() + parameters["more"][0].sum()

    tree = {"w": mx.ones(7), "more": [mx.ones((2, 3))]}
    optimizer = distributed(world, optim.SGD(0.5), shard=True)
    value = optimizer.minimize(distance, tree, mx.array(2.0 * (1 + world.rank)))
    assert value.item() == 14 * (1 + world.rank) + 6
    expected = {"w": mx.full(7, (1 - world.size) / 2), "more": [mx.full((2, 3), 0.5)]}
    assert_same_bits(tree, expected)


def test_minimize_without_init_initializes(world):
    model, twin = seeded_net(world.rank), seeded_net(world.rank)
    optimizer, reference = (distributed(world, shard=True) for _ in range(2))
    optimizer.init(twin)
    trees = tree_map(mx.array, twin.parameters())
    model.update(trees)
    x, y = rank_batch(world, 0)
    reference.minimize(loss, model, x, y)
    optimizer.minimize(loss, twin, x, y)
    assert_same_bits(model.parameters(), twin.parameters())


@each_shard
def test_minimize_inside_compile_has_the_bits_of_update(shard, world):
    results = []
    for takes_one_call in (True, False):
        model = seeded_net(6)
        optimizer = distributed(world, optim.AdamW(1e-2), shard=shard, max_norm=0.5)
        optimizer.init(model)
        state = [model.state, optimizer.state]

        def step(x, y, model=model, optimizer=optimizer, one=takes_one_call):
            if one:
                return optimizer.minimize(loss, model, x, y)
            return update(model, optimizer, x, y)

        compiled = mx.compile(step, inputs=state, outputs=state)
        losses = [compiled(*rank_batch(world, i)).item() for i in range(3)]
        results.append((losses, model.parameters()))
    assert results[0][0] == results[1][0]
    assert_same_bits(results[0][1], results[1][1])


def test_minimize_synchronizes_buffers(world):
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 3)
            self.seen = mx.zeros(1)
            self.freeze(keys=["seen"], recurse=False)

        def __call__(self, x):
            self.seen = self.seen + x.shape[0]
            return self.layer(x)

    model = Counting()
    optimizer = distributed(world, sync_buffers="mean")
    optimizer.init(model)
    x, y = batch(0, 1 + world.rank)
    optimizer.minimize(loss, model, x, y)
    assert model.seen.item() == np.mean(1.0 + np.arange(world.size))
