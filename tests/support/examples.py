"""Models, gradients and references that several tests share."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten, tree_map

import mlxdist

# Whatever mlx.optimizers exports, so that a new class is tested without being listed.
CLASSES = {
    name: cls
    for name, cls in sorted(vars(optim).items())
    if inspect.isclass(cls)
    and issubclass(cls, optim.Optimizer)
    and cls is not optim.Optimizer
}
SCHEDULE = optim.linear_schedule(1e-2, 1e-3, 4)

_SETTINGS: dict[str, dict[str, Any]] = {
    "SGD": {"learning_rate": SCHEDULE, "momentum": 0.9, "weight_decay": 0.01},
    "Adafactor": {},
}


def make(name: str) -> optim.Optimizer:
    """An optimizer of a class, with a schedule."""
    if name == "MultiOptimizer":
        return optim.MultiOptimizer(
            [optim.Muon(SCHEDULE), optim.SGD(1e-2, momentum=0.9), optim.AdamW(1e-2)],
            [
                lambda path, x: x.ndim == 2 and "embed" not in path,
                lambda path, x: path.endswith("bias"),
            ],
        )
    return CLASSES[name](**_SETTINGS.get(name, {"learning_rate": SCHEDULE}))


def wrap(
    world: mlxdist.World, inner: optim.Optimizer | None = None, **options: Any
) -> mlxdist.DistributedOptimizer:
    """The distributed optimizer around one: AdamW, unless told otherwise."""
    return mlxdist.DistributedOptimizer(
        inner or optim.AdamW(1e-2), world=world, **options
    )


wrap_with_masters = partial(wrap, master_dtype=mx.float32, bucket_size=64)


def shard_modes(name: str) -> list[Any]:
    """The values of shard= that a class can take."""
    elementwise = name not in ("Muon", "Adafactor", "MultiOptimizer")
    return [False, "tensors"] + (["elements"] if elementwise else [])


def parameters(name: str = "AdamW") -> dict[str, Any]:
    """All kinds of leaves: nested, scalar, 4-D, 16-bit, and sizes that N won't divide.

    Empty arrays only where MLX's own optimizer can take them.
    """
    key = mx.random.key(7)

    def draw(*shape: int, dtype: Any = mx.float32) -> mx.array:
        nonlocal key
        key, now = mx.random.split(key)
        return mx.random.normal(shape, dtype=mx.float32, key=now).astype(dtype)

    tree = {
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
    if name not in ("Muon", "Adafactor", "MultiOptimizer"):
        tree["empty"] = draw(0, 3)
    mx.eval(tree)
    return tree


def gradients(like: Any, step: int, rank: int, *, whole: bool) -> Any:
    """A rank's gradients for a step: small whole numbers, or normal ones."""
    numbers = np.random.default_rng([step, rank])

    def draw(leaf: mx.array) -> mx.array:
        if whole:
            values = numbers.integers(-8, 9, leaf.shape)
        else:
            values = numbers.standard_normal(leaf.shape)
        return mx.array(values.astype(np.float32)).astype(leaf.dtype)

    return tree_map(draw, like)


def mean_of(trees: list[Any], weights: list[float] | None = None) -> Any:
    """The weighted mean, added in float32 in order and rounded once."""
    weights = weights or [1.0] * len(trees)

    def mean(*leaves: mx.array) -> mx.array:
        total = mx.zeros(leaves[0].shape, mx.float32)
        for leaf, weight in zip(leaves, weights, strict=True):
            total = total + leaf.astype(mx.float32) * weight
        return (total / sum(weights)).astype(leaves[0].dtype)

    return tree_map(mean, *trees)


def assert_same_bits(one: Any, other: Any) -> None:
    """Two trees have the same paths, shapes, dtypes and bits; nan equals nan."""
    ones, others = dict(tree_flatten(one)), dict(tree_flatten(other))
    assert ones.keys() == others.keys()
    for path, array in ones.items():
        twin = others[path]
        assert array.dtype == twin.dtype, path
        assert array.shape == twin.shape, path
        wrong = int((bits(array) != bits(twin)).sum())
        assert not wrong, f"{path}: {wrong} of {array.size} elements differ"


def assert_as_eager(one: Any, other: Any, dtype: Any = mx.float32) -> None:
    """What a compiled update gives is what MLX gives one operation after another.

    To the bit on a CPU. The compilers of accelerators join a product and a sum, or keep
    16-bit numbers in 32 bits until the end, and so round less often.
    """
    if mx.default_device() == mx.cpu:
        assert_same_bits(one, other)
    else:
        # 16 bits: 0.053 where momentum and gradient cancel, if sums are in float32.
        few = 2e-6 if dtype == mx.float32 else 2.0**-4
        assert largest_difference(one, other) < few


def bits(array: mx.array) -> np.ndarray:
    if not array.size:  # some of which crash mx.contiguous in MLX 0.32's CUDA build
        return np.empty(0, np.uint8)
    return np.array(mx.contiguous(array.reshape(-1)).view(mx.uint8))


def largest_difference(one: Any, other: Any) -> float:
    """The largest |a - b| / (1 + |b|) over two trees."""
    others = dict(tree_flatten(other))
    worst = 0.0
    for path, array in tree_flatten(one):
        a = np.array(array.astype(mx.float32), np.float64)
        b = np.array(others[path].astype(mx.float32), np.float64)
        differ = (a != b) & ~(np.isnan(a) & np.isnan(b))
        if differ.any():
            a, b = a[differ], b[differ]
            worst = max(worst, float((abs(a - b) / (1 + abs(b))).max()))
    return worst


class Net(nn.Module):
    """A small network with a frozen layer, a tied pair and a scalar."""

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


def loss(model: nn.Module, x: mx.array, y: mx.array) -> mx.array:
    return nn.losses.mse_loss(model(x), y)


def batch(step: int, examples: int) -> tuple[mx.array, mx.array]:
    """A global batch, the same on every rank that asks for it."""
    numbers = np.random.default_rng(step)
    x = numbers.standard_normal((examples, 6)).astype(np.float32)
    y = numbers.standard_normal((examples, 3)).astype(np.float32)
    return mx.array(x), mx.array(y)


def told_by_doctor(*pairs, **more):
    exchange = {"buckets": 4, "bytes": 2e7, "seconds": 0.1}
    exchange |= {"computing": 0.1, "both": 0.2}
    links = {"ranks": 2, "hosts": ["a", "b"], "pairs": [*pairs], "exchange": exchange}
    return {"links": {**links, **more}}
