"""Models, gradients, training steps and reference results shared by tests."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import cache, partial
from itertools import product
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map

import mlxdist

SHARDS = [False, "elements", "tensors"]
TRANSPORTS = ["native", "host"]
CASES = list(product(SHARDS, TRANSPORTS))
each_shard = pytest.mark.parametrize("shard", SHARDS)
each_transport = pytest.mark.parametrize("transport", TRANSPORTS)

# Read from mlx.optimizers, so that a new class of MLX is tested without being listed.
CLASSES = {
    name: cls
    for name, cls in sorted(vars(optim).items())
    if inspect.isclass(cls)
    and issubclass(cls, optim.Optimizer)
    and cls is not optim.Optimizer
}
SCHEDULE = optim.linear_schedule(1e-2, 1e-3, 4)

_ARGUMENTS: dict[str, dict[str, Any]] = {
    "SGD": {"learning_rate": SCHEDULE, "momentum": 0.9, "weight_decay": 0.01},
    "Adafactor": {},
}


# -- optimizers


def make(name: str) -> optim.Optimizer:
    """Return an optimizer of an MLX class, with a schedule as its learning rate."""
    if name == "MultiOptimizer":
        return optim.MultiOptimizer(
            [optim.Muon(SCHEDULE), optim.SGD(1e-2, momentum=0.9), optim.AdamW(1e-2)],
            [
                lambda path, x: x.ndim == 2 and "embed" not in path,
                lambda path, x: path.endswith("bias"),
            ],
        )
    return CLASSES[name](**_ARGUMENTS.get(name, {"learning_rate": SCHEDULE}))


def distributed(
    world: mlxdist.World, inner: optim.Optimizer | None = None, **options: Any
) -> mlxdist.DistributedOptimizer:
    """Return a DistributedOptimizer around `inner`, which is AdamW by default."""
    return mlxdist.DistributedOptimizer(
        inner or optim.AdamW(1e-2), world=world, **options
    )


distributed_with_masters = partial(distributed, master_dtype=mx.float32, bucket_size=64)


def shard_modes(name: str) -> list[Any]:
    """Return the values of `shard` that an optimizer class supports."""
    elementwise = name not in ("Muon", "Adafactor", "MultiOptimizer")
    return [False, "tensors"] + (["elements"] if elementwise else [])


def optimizer_cases(names: list[str]) -> list[Any]:
    """Return pytest parameters (name, shard, transport) for optimizer classes."""
    return [
        pytest.param(name, shard, transport, id=f"{name}-{shard}-{transport}")
        for name in names
        for shard in shard_modes(name)
        for transport in TRANSPORTS
    ]


def linear_layers() -> nn.Module:
    """Return three layers of 3 x 3, of ones."""
    model = nn.Sequential(*(nn.Linear(3, 3) for _ in range(3)))
    model.update(tree_map(lambda x: mx.ones(x.shape), model.parameters()))
    return model


# -- trees of parameters and gradients


def parameters(name: str = "AdamW") -> dict[str, Any]:
    """Return a tree with all kinds of parameters.

    Nested, scalar, 4-D and 16-bit ones, with sizes that the ranks do not divide. It has
    an empty array where the MLX optimizer class `name` can update one.
    """
    tree = tree_map(mx.array, _drawn())
    if name not in ("Muon", "Adafactor", "MultiOptimizer"):
        tree["empty"] = mx.zeros((0, 3))
    mx.eval(tree)
    return tree


@cache
def _drawn() -> dict[str, Any]:
    key = mx.random.key(7)

    def draw(*shape: int, dtype: Any = mx.float32) -> mx.array:
        nonlocal key
        key, now = mx.random.split(key)
        return mx.random.normal(shape, dtype=mx.float32, key=now).astype(dtype)

    return {
        "embed": {"weight": draw(11, 7)},
        "blocks": [
            {"weight": draw(7, 5), "bias": draw(5)},
            {"weight": draw(5, 7), "bias": draw(7)},
        ],
        "conv": draw(3, 2, 2, 2),
        "scale": draw(),
        "two": draw(2),
        "brain": draw(9, 3, dtype=mx.bfloat16),
        "half": draw(13, dtype=mx.float16),
    }


def gradients(like: Any, step: int, rank: int, *, integers: bool = True) -> Any:
    """Return a rank's gradients of a step.

    Small integers have exact sums, so that results can be compared bit for bit; else
    the values are normally distributed.
    """
    numbers = np.random.default_rng([step, rank])

    def draw(leaf: mx.array) -> mx.array:
        if integers:
            values = numbers.integers(-8, 9, leaf.shape)
        else:
            values = numbers.standard_normal(leaf.shape)
        return mx.array(values.astype(np.float32)).astype(leaf.dtype)

    return tree_map(draw, like)


def gradients_of_ranks(like: Any, step: int, ranks: int, **options: Any) -> list[Any]:
    """Return the gradients of all ranks of a step, by rank."""
    return [gradients(like, step, rank, **options) for rank in range(ranks)]


def apply_steps(
    optimizer: mlxdist.DistributedOptimizer, tree: Any, steps: Any, rank: int = 0
) -> Any:
    """Train a tree of parameters on the integer gradients of `rank`."""
    for step in steps:
        tree = optimizer.apply_gradients(gradients(tree, step, rank), tree)
    return tree


def mean_of(trees: list[Any], weights: list[float] | None = None) -> Any:
    """Return the weighted mean, added in float32 in order and rounded once."""
    weights = weights or [1.0] * len(trees)

    def mean(*leaves: mx.array) -> mx.array:
        total = mx.zeros(leaves[0].shape, mx.float32)
        for leaf, weight in zip(leaves, weights, strict=True):
            total = total + leaf.astype(mx.float32) * weight
        return (total / sum(weights)).astype(leaves[0].dtype)

    return tree_map(mean, *trees)


def full_like(tree: Any, value: float) -> Any:
    """Return a tree with every element set to `value`."""
    return tree_map(lambda leaf: mx.full(leaf.shape, value, leaf.dtype), tree)


def to_float32(tree: Any) -> Any:
    return tree_map(lambda leaf: leaf.astype(mx.float32), tree)


def cast_like(tree: Any, like: Any) -> Any:
    """Return the tree in the dtypes of another one."""
    return tree_map(lambda leaf, other: leaf.astype(other.dtype), tree, like)


# -- comparisons


def assert_same_bits(one: Any, other: Any) -> None:
    """Assert that two trees have the same paths, shapes, dtypes and bits."""
    ones, others = dict(tree_flatten(one)), dict(tree_flatten(other))
    assert ones.keys() == others.keys()
    twins = [others[path] for path in ones]
    for (path, array), twin in zip(ones.items(), twins, strict=True):
        assert array.dtype == twin.dtype, path
        assert array.shape == twin.shape, path
    found = bits_of([*ones.values(), *twins])
    for index, (path, array) in enumerate(ones.items()):
        wrong = int((found[index] != found[index + len(ones)]).sum())
        assert not wrong, f"{path}: {wrong} of {array.nbytes} bytes differ"


def bits(array: mx.array) -> np.ndarray:
    """Return the bytes of an array, as uint8."""
    return bits_of([array])[0]


def bits_of(arrays: Sequence[mx.array]) -> list[np.ndarray]:
    """Return the bytes of arrays. They are evaluated at once, which is much faster."""
    # mx.contiguous crashes on some empty arrays in MLX 0.32 with CUDA.
    views = [
        mx.contiguous(array.reshape(-1)).view(mx.uint8)
        if array.size
        else mx.zeros(0, mx.uint8)
        for array in arrays
    ]
    mx.eval(views)
    return [np.array(view) for view in views]


def largest_difference(one: Any, other: Any) -> float:
    """Return the largest |a - b| / (1 + |b|) over two trees, in float64."""
    others = dict(tree_flatten(to_float32(other)))
    ones = tree_flatten(to_float32(one))
    mx.eval(ones, others)
    largest = 0.0
    for path, array in ones:
        a, b = np.array(array, np.float64), np.array(others[path], np.float64)
        differ = (a != b) & ~(np.isnan(a) & np.isnan(b))
        if differ.any():
            a, b = a[differ], b[differ]
            largest = max(largest, float((abs(a - b) / (1 + abs(b))).max()))
    return largest


# -- a model


class Net(nn.Module):
    """A small network with a frozen layer and a scalar parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 10)
        self.layers = [nn.Linear(10, 10), nn.Linear(10, 10)]
        self.frozen = nn.Linear(10, 10)
        self.norm = nn.RMSNorm(10)
        self.gain = mx.array(1.0)
        self.head = nn.Linear(10, 3)
        self.frozen.freeze()

    def __call__(self, x: mx.array) -> mx.array:
        x = self.embed(x)
        for layer in self.layers:
            x = x + nn.gelu(layer(x))
        return self.head(self.norm(self.frozen(x)) * self.gain)


def seeded_net(seed: int) -> Net:
    mx.random.seed(seed)
    return Net()


def loss(model: nn.Module, x: mx.array, y: mx.array) -> mx.array:
    return nn.losses.mse_loss(model(x), y)


def batch(step: int, examples: int) -> tuple[mx.array, mx.array]:
    """Return a batch of `Net`, the same on every rank that asks for it."""
    numbers = np.random.default_rng(step)
    x = numbers.standard_normal((examples, 6)).astype(np.float32)
    y = numbers.standard_normal((examples, 3)).astype(np.float32)
    return mx.array(x), mx.array(y)


def rank_batch(
    world: mlxdist.World, step: int, examples: int = 4
) -> tuple[mx.array, mx.array]:
    """Return a batch of `Net` that no other rank or step has."""
    return batch(step * world.size + world.rank, examples)


def loss_and_gradients(model: nn.Module, x: mx.array, y: mx.array) -> Any:
    return nn.value_and_grad(model, loss)(model, x, y)


def update(
    model: nn.Module, optimizer: optim.Optimizer, x: mx.array, y: mx.array
) -> mx.array:
    """Take one training step on a batch and return the loss."""
    value, grads = loss_and_gradients(model, x, y)
    optimizer.update(model, grads)
    return value
