"""Compiled training steps, and their results compared with those of eager ones."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim

from tests.support.examples import assert_same_bits, largest_difference, update


def compiled_update(
    model: nn.Module, optimizer: optim.Optimizer
) -> Callable[[mx.array, mx.array], mx.array]:
    """Return `update` as one compiled step, after `optimizer.init(model)`."""
    state = [model.state, optimizer.state]
    step = mx.compile(partial(update, model, optimizer), inputs=state, outputs=state)

    def evaluated(x: mx.array, y: mx.array) -> mx.array:
        value = step(x, y)
        mx.eval(value, model.state, optimizer.state)
        return value

    return evaluated


def assert_as_eager(one: Any, other: Any, dtype: Any = mx.float32) -> None:
    """Assert that compiled kernels give what MLX gives one operation after another.

    To the bit on a CPU. The compilers of accelerators fuse a product and a sum, or keep
    16-bit numbers in 32 bits until the end, and so round less often.
    """
    if mx.default_device() == mx.cpu:
        assert_same_bits(one, other)
    else:
        # 16 bits: 0.053 where momentum and gradient cancel, if sums are in float32.
        tolerance = 2e-6 if dtype == mx.float32 else 2.0**-4
        assert largest_difference(one, other) < tolerance
