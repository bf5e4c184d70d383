"""Updates by each class of MLX, wrapped: shapes, dtypes, and values after a step."""

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_map

from tests.support.examples import CLASSES, distributed, each_shard, shard_modes
from tests.support.mlx_contract import (
    all_true,
    each_class,
    ones_around,
    small_tree,
    wrap,
)

pytestmark = pytest.mark.mpi

each_whole_tensor_shard = pytest.mark.parametrize("shard", shard_modes("Muon"))


@each_class
def test_apply_gradients_keeps_every_shape(name, shard, world):
    tree = small_tree()
    optimizer = distributed(world, CLASSES[name](0.1), shard=shard)
    new = optimizer.apply_gradients(ones_around(tree, world), tree)
    mx.eval(new)
    assert all_true(lambda old, new: old.shape == new.shape, tree, new)


@each_class
def test_apply_gradients_keeps_float16(name, shard, world):
    tree = {"w": mx.ones((5, 5), mx.float16)}
    optimizer = distributed(world, CLASSES[name](0.1), shard=shard)
    new = optimizer.apply_gradients(ones_around(tree, world), tree)
    assert new["w"].dtype == mx.float16
    assert mx.isfinite(new["w"]).all().item()


@each_shard
def test_adam_with_bias_correction_keeps_float16(shard, world):
    tree = small_tree(mx.float16)
    optimizer = wrap(world, "Adam", shard, learning_rate=1e-2, bias_correction=True)
    new = optimizer.apply_gradients(ones_around(tree, world), tree)
    assert all_true(lambda leaf: leaf.dtype == mx.float16, new)


@each_shard
def test_adamw_step_is_that_of_the_paper(shard, world):
    rate, decay, eps = 3e-4, 0.01, 1e-8
    draw = np.random.default_rng(0)
    weight = draw.standard_normal((1, 3)).astype(np.float32)
    x, y = draw.random((3, 3), np.float32), draw.random((3, 1), np.float32)
    error = x @ weight.T - y
    gradient = (2 / 3) * error.T @ x
    optimizer = wrap(
        world,
        "AdamW",
        shard,
        learning_rate=rate,
        weight_decay=decay,
        bias_correction=True,
    )

    def loss(tree):
        return mx.square(mx.array(x) @ tree["w"].T - mx.array(y)).mean()

    tree = {"w": mx.array(weight)}
    new = optimizer.apply_gradients(mx.grad(loss)(tree), tree)
    # Both moments are the gradient's own at the first step, once corrected.
    step = gradient / (np.sqrt(gradient**2) + eps)
    expected = weight * (1 - rate * decay) - rate * step
    np.testing.assert_allclose(np.array(new["w"]), expected, rtol=1e-5)


@each_whole_tensor_shard
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16], ids=str)
def test_adafactor_without_arguments_keeps_shape_and_dtype(dtype, shard, world):
    tree = {"x": mx.zeros((5, 5), dtype)}
    optimizer = wrap(world, "Adafactor", shard)
    for _ in range(2):
        new = optimizer.apply_gradients(ones_around(tree, world), tree)
        assert (new["x"].dtype, new["x"].shape) == (dtype, (5, 5))
    assert optimizer.step.item() == 2


@each_whole_tensor_shard
def test_adafactor_factors_parameters_of_three_dimensions(shard, world):
    tree = {"x": mx.zeros((2, 3, 4))}
    optimizer = wrap(world, "Adafactor", shard)
    for _ in range(2):
        tree = optimizer.apply_gradients(ones_around(tree, world), tree)
        assert tree["x"].shape == (2, 3, 4)
        assert mx.isfinite(tree["x"]).all().item()
    state = optimizer.gather_state()["x"]
    assert state["exp_avg_sq_row"].shape == (2, 3)
    assert state["exp_avg_sq_col"].shape == (2, 4)


@each_whole_tensor_shard
@pytest.mark.parametrize(
    "arguments",
    [
        {"momentum": 0.95, "nesterov": True},
        {"momentum": 0.95, "nesterov": False},
        {"momentum": 0.0},
    ],
    ids=["nesterov", "momentum", "plain"],
)
def test_muon_updates_every_kind_of_tensor(arguments, shard, world):
    tree = {
        "first": [mx.zeros((10, 5)), mx.zeros((1,))],
        "second": mx.zeros((3, 3)),
        "conv": mx.zeros((16, 8, 3, 3)),
    }
    optimizer = wrap(world, "Muon", shard, learning_rate=1e-2, **arguments)
    new = optimizer.apply_gradients(ones_around(tree, world), tree)
    assert all_true(lambda old, new: old.shape == new.shape, tree, new)
    assert all_true(lambda old, new: not mx.array_equal(old, new), tree, new)


@each_class
def test_update_of_a_dict_replaces_its_parameters(name, shard, world):
    tree = {"layer": {"w": mx.ones((4, 3))}, "pair": (mx.ones((2, 2)), mx.ones(5))}
    before = tree_map(mx.array, tree)
    optimizer = distributed(world, CLASSES[name](0.1), shard=shard)
    optimizer.update(tree, ones_around(tree, world))
    reference = CLASSES[name](0.1)
    reference.update(before, tree_map(mx.ones_like, before))
    assert isinstance(tree["pair"], tuple)
    assert all_true(lambda a, b: mx.allclose(a, b, atol=1e-6), tree, before)


@pytest.mark.parametrize("cls", [optim.RMSprop, optim.Adagrad, optim.AdaDelta])
@pytest.mark.parametrize("eps", [-1.0, 0.0])
def test_accumulators_refuse_an_epsilon_that_divides_by_zero(cls, eps, world):
    with pytest.raises(ValueError, match=">0"):
        distributed(world, cls(learning_rate=1e-2, eps=eps))
