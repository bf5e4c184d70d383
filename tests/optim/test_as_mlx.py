"""What MLX expects of its optimizers, expected of a wrapped one."""

from functools import partial

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import pytest
from mlx.utils import tree_flatten, tree_map, tree_unflatten

import mlxdist
from tests.support.examples import (
    CLASSES,
    Net,
    assert_same_bits,
    batch,
    largest_difference,
    loss,
    make,
    shard_modes,
)

pytestmark = pytest.mark.mpi
CASES = [
    pytest.param(name, shard, id=f"{name}-{shard}")
    for name in CLASSES
    for shard in shard_modes(name)
]


def wrap(world, inner, **options):
    return mlxdist.DistributedOptimizer(inner, world=world, **options)


def tree():
    return {"first": [mx.zeros((10, 4)), mx.zeros((1,))], "second": mx.zeros((3, 1))}


@pytest.mark.parametrize(("name", "shard"), CASES)
def test_structure_shapes_and_dtypes_stay(name, shard, world):
    for dtype in (mx.float32, mx.bfloat16, mx.float16):
        own = tree_map(lambda x, dtype=dtype: x.astype(dtype), tree())
        ours = wrap(world, make(name), shard=shard)
        result = ours.apply_gradients(tree_map(mx.ones_like, own), own)
        assert type(result["first"]) is list
        for (path, before), (where, after) in zip(
            tree_flatten(own), tree_flatten(result), strict=True
        ):
            assert (path, before.shape, before.dtype) == (
                where,
                after.shape,
                after.dtype,
            )
            assert mx.all(after < before).item()  # against the gradient


@pytest.mark.parametrize(("name", "shard"), CASES)
def test_state_can_be_set_before_the_first_step(name, shard, world):
    """From a flattened state, as one that was loaded from a file."""
    if name == "MultiOptimizer":
        pytest.skip("its state is a list of states")
    first, plain = wrap(world, make(name), shard=shard), make(name)
    own = twin = tree()
    for _ in range(2):
        grads = tree_map(mx.ones_like, own)
        own = first.apply_gradients(grads, own)
        twin = plain.apply_gradients(grads, twin)
    flat = [(k, mx.array(v)) for k, v in tree_flatten(first.state)]
    other = wrap(world, make(name), shard=shard)
    other.init(own)
    other.state = tree_unflatten(flat)
    grads = tree_map(mx.ones_like, own)
    assert_same_bits(
        other.apply_gradients(grads, own), plain.apply_gradients(grads, twin)
    )
    assert other.step.item() == 3


def test_adam_is_what_its_paper_says(world):
    """With and without correction of the bias, against the formulas."""
    for corrects in (False, True):
        ours = wrap(
            world,
            optim.Adam(1e-2, betas=[0.9, 0.99], bias_correction=corrects),
            shard=True,
        )
        own, m, v = mx.ones((5, 3)), 0.0, 0.0
        wanted = own
        for step in range(1, 4):
            gradient = mx.full((5, 3), 0.5 * step)
            own = ours.apply_gradients({"w": gradient}, {"w": own})["w"]
            m, v = 0.9 * m + 0.1 * gradient, 0.99 * v + 0.01 * gradient**2
            m_hat = m / (1 - 0.9**step) if corrects else m
            v_hat = v / (1 - 0.99**step) if corrects else v
            wanted = wanted - 1e-2 * m_hat / (mx.sqrt(v_hat) + 1e-8)
        assert largest_difference({"w": own}, {"w": wanted}) < 1e-6


def test_sgd_with_all_it_has(world):
    ours = wrap(
        world,
        optim.SGD(0.1, momentum=0.9, weight_decay=0.01, nesterov=True),
        shard=True,
    )
    own, wanted, v = mx.ones(7), mx.ones(7), None
    for _ in range(3):
        own = ours.apply_gradients({"w": mx.full(7, 0.5)}, {"w": own})["w"]
        gradient = 0.5 + 0.01 * wanted
        v = gradient if v is None else 0.9 * v + gradient
        wanted = wanted - 0.1 * (gradient + 0.9 * v)
    assert largest_difference({"w": own}, {"w": wanted}) < 1e-6


SCHEDULES = {
    "exponential": lambda: optim.exponential_decay(1e-1, 0.9),
    "step": lambda: optim.step_decay(1e-1, 0.5, 2),
    "cosine": lambda: optim.cosine_decay(1e-1, 4, 1e-3),
    "linear": lambda: optim.linear_schedule(1e-1, 1e-2, 3),
    "joined": lambda: optim.join_schedules(
        [optim.linear_schedule(0.0, 1e-1, 2), optim.cosine_decay(1e-1, 4)], [2]
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("shard", [False, True])
def test_schedules(name, shard, world):
    ours, plain = wrap(world, optim.SGD(SCHEDULES[name]()), shard=shard), None
    plain = optim.SGD(SCHEDULES[name]())
    own = twin = tree()
    for step in range(6):
        assert ours.step.item() == step
        grads = tree_map(mx.ones_like, own)
        own = ours.apply_gradients(grads, own)
        twin = plain.apply_gradients(grads, twin)
        assert ours.learning_rate.item() == plain.learning_rate.item()
    assert_same_bits(own, twin)


@pytest.mark.parametrize("shard", [False, True])
def test_the_learning_rate_can_be_set_between_steps(shard, world):
    ours = wrap(world, optim.SGD(1.0), shard=shard)
    own = {"w": mx.zeros(3)}
    for rate in (1.0, 0.5, mx.array(0.25)):
        ours.learning_rate = rate
        own = ours.apply_gradients({"w": mx.ones(3)}, own)
    assert own["w"].tolist() == [-1.75] * 3


@pytest.mark.parametrize("shard", [False, "elements", "tensors"])
def test_a_compiled_step_with_another_learning_rate(shard, world):
    mx.random.seed(1)
    model, twin = Net(), Net()
    twin.update(model.parameters())
    ours = wrap(world, optim.SGD(1e-1, momentum=0.5), shard=shard, transport="native")
    plain = optim.SGD(1e-1, momentum=0.5)
    ours.init(model)
    state = [model.state, ours.state]

    @partial(mx.compile, inputs=state, outputs=state)
    def step(x, y):
        _, grads = nn.value_and_grad(model, loss)(model, x, y)
        ours.update(model, grads)

    for number in range(4):
        x, y = batch(number, 4)
        step(x, y)
        mx.eval(state)
        plain.update(twin, nn.value_and_grad(twin, loss)(twin, x, y)[1])
        ours.learning_rate = plain.learning_rate = 0.1 / (number + 2)
    assert largest_difference(model.parameters(), twin.parameters()) < 1e-6


@pytest.mark.parametrize("shard", [False, "tensors"])
def test_several_optimizers_by_filters(shard, world):
    inner = optim.MultiOptimizer(
        [optim.SGD(0.5), optim.SGD(0.25), optim.SGD(0.125)],
        [lambda path, x: x.ndim == 2, lambda path, x: path.startswith("first")],
    )
    own = tree()
    result = wrap(world, inner, shard=shard).apply_gradients(
        tree_map(mx.ones_like, own), own
    )
    assert result["first"][0][0, 0].item() == -0.5
    assert result["first"][1].item() == -0.25
    assert result["second"][0].item() == -0.5


def test_clipping_is_mlx_clip_grad_norm(world):
    grads = {"a": mx.array([3.0, 4.0]), "b": [mx.array([12.0])]}
    own = tree_map(mx.zeros_like, grads)
    for max_norm in (1.0, 13.0, 100.0):
        ours = wrap(world, optim.SGD(1.0), shard=True, max_norm=max_norm)
        result = ours.apply_gradients(grads, own)
        clipped, norm = optim.clip_grad_norm(grads, max_norm)
        assert ours.grad_norm.item() == norm.item() == 13.0
        assert largest_difference(result, tree_map(mx.negative, clipped)) < 1e-6
