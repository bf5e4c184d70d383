"""What MLX mended in 0.32.3 and 0.32.4, under the wrapper.

`MultiOptimizer` with empty parts (mlx#4215) is in test_multi_optimizer.py.
"""

import math

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import pytest
from mlx.utils import tree_flatten, tree_map

from tests.support.examples import (
    CLASSES,
    assert_same_bits,
    distributed,
    each_shard,
    each_transport,
    make,
    shard_modes,
)
from tests.support.mlx_contract import around, ones_around

pytestmark = pytest.mark.mpi

DECAYING = {
    "SGD": {"learning_rate": 0.1, "weight_decay": 0.5},
    "AdamW": {"learning_rate": 0.1, "weight_decay": 0.5},
    "Lion": {"learning_rate": 0.1, "weight_decay": 0.5},
    "Muon": {"learning_rate": 0.1, "weight_decay": 0.5},
    "Adafactor": {"learning_rate": 0.1, "weight_decay": 0.5, "relative_step": False},
}


# -- mlx#4426: weight decay changed the arrays of the caller


@pytest.mark.parametrize(
    ("name", "shard"),
    [(name, shard) for name in DECAYING for shard in shard_modes(name)],
)
def test_weight_decay_leaves_the_callers_arrays(name, shard, world):
    tree = {"w": mx.ones((4, 3)), "b": mx.full(5, 2.0)}
    grads = ones_around(tree, world)
    copies = tree_map(lambda leaf: mx.array(leaf), [tree, grads])
    mx.eval(tree, grads, copies)
    optimizer = distributed(world, CLASSES[name](**DECAYING[name]), shard=shard)
    for _ in range(2):
        mx.eval(optimizer.apply_gradients(grads, tree))
        assert_same_bits([tree, grads], copies)


@pytest.mark.parametrize(
    ("name", "shard"),
    [(name, shard) for name in CLASSES for shard in shard_modes(name)],
)
def test_update_leaves_the_gradients_and_old_parameters(name, shard, world):
    model = nn.Linear(3, 2)
    optimizer = distributed(world, make(name), shard=shard)
    optimizer.init(model)
    old = model.parameters()
    grads = ones_around(old, world)
    copies = tree_map(lambda leaf: mx.array(leaf), [old, grads])
    mx.eval(old, grads, copies)
    optimizer.update(model, grads)
    mx.eval(model.parameters())
    assert_same_bits([old, grads], copies)


# -- 16-bit squares overflow: norms are added in float32


def float16_tree(world):
    """Return gradients of this rank with a mean norm of exactly 1000."""
    mean = {"a": mx.full((3, 3), 200, mx.float16), "b": mx.full(16, 200, mx.float16)}
    return around(mean, world)


def test_clip_grad_norm_of_float16_does_not_overflow(world):
    grads = {"a": mx.full(25, 200, mx.float16)}
    clipped, norm = optim.clip_grad_norm(grads, 1.0)
    assert norm.item() == pytest.approx(1000.0)
    assert clipped["a"].dtype == mx.float16
    assert clipped["a"].tolist() == pytest.approx([0.2] * 25, rel=1e-3)


@each_shard
@each_transport
def test_max_norm_of_float16_does_not_overflow(shard, transport, world):
    grads = float16_tree(world)
    tree = tree_map(mx.zeros_like, grads)
    optimizer = distributed(
        world, optim.SGD(1.0), shard=shard, transport=transport, max_norm=1.0
    )
    new = optimizer.apply_gradients(grads, tree)
    assert optimizer.grad_norm.dtype == mx.float32
    assert optimizer.grad_norm.item() == pytest.approx(1000.0)
    for _, leaf in tree_flatten(new):
        assert leaf.dtype == mx.float16
        assert leaf.reshape(-1).tolist() == pytest.approx([-0.2] * leaf.size, rel=1e-3)


@each_shard
@each_transport
def test_max_norm_of_tiny_float16_does_not_underflow(shard, transport, world):
    tiny = 2.0**-14  # its square is 0 in float16
    tree = {"w": mx.zeros(16, mx.float16)}
    optimizer = distributed(
        world, optim.SGD(1.0), shard=shard, transport=transport, max_norm=2.0**-14
    )
    optimizer.apply_gradients({"w": mx.full(16, tiny, mx.float16)}, tree)
    assert optimizer.grad_norm.item() == 4 * tiny


@each_shard
@each_transport
def test_max_norm_far_below_the_norm_keeps_float16_gradients(shard, transport, world):
    # The factor of 1e-8 is 0 in float16; the clipped gradients of 2e-6 are not.
    grads = float16_tree(world)
    tree = tree_map(mx.zeros_like, grads)
    optimizer = distributed(
        world, optim.SGD(1.0), shard=shard, transport=transport, max_norm=1e-5
    )
    new = optimizer.apply_gradients(grads, tree)
    for _, leaf in tree_flatten(new):
        values = leaf.astype(mx.float32).reshape(-1).tolist()
        assert values == pytest.approx([-2e-6] * leaf.size, rel=0.05)


@each_shard
def test_max_norm_of_float16_does_not_overflow_while_compile_traces(shard, world):
    grads = float16_tree(world)
    tree = tree_map(mx.zeros_like, grads)
    optimizer = distributed(world, optim.SGD(1.0), shard=shard, max_norm=1.0)
    optimizer.init(tree)
    new = mx.compile(optimizer.apply_gradients)(grads, tree)
    mx.eval(new)
    for _, leaf in tree_flatten(new):
        assert leaf.reshape(-1).tolist() == pytest.approx([-0.2] * leaf.size, rel=1e-3)


@each_shard
def test_max_norm_of_bfloat16_is_added_in_float32(shard, world):
    # 1 + 2^-9 is 1 in bfloat16: a sum in bfloat16 would stop at 256.
    tree = {"w": mx.zeros(4096, mx.bfloat16)}
    optimizer = distributed(world, optim.SGD(1.0), shard=shard, max_norm=math.inf)
    optimizer.apply_gradients(ones_around(tree, world), tree)
    assert optimizer.grad_norm.item() == 64.0
