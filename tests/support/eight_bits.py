"""Parameters and full states for tests of moments in 8 bits."""

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from mlxdist.arrays.blockwise import quantize, widen

SHAPE = (65, 64)  # 65 blocks, which no number of ranks from 2 to 4 divides


def tree_of(dtype=mx.float32, names="abc"):
    """Three parameters, two of them with state in 8 bits."""
    key = mx.random.key(1)
    shapes = {"a": SHAPE, "b": (7,), "c": (40, 8, 16)}
    return {n: mx.random.normal(shapes[n], key=key).astype(dtype) for n in names}


def moments(tree, seed=0):
    """Return a full float32 state of AdamW, with other values for each element."""
    numbers = np.random.default_rng(seed)

    def draw(array):
        return mx.array(numbers.standard_normal(array.shape).astype(np.float32))

    state = {n: {"m": draw(a), "v": mx.square(draw(a))} for n, a in tree.items()}
    step, rate = mx.array(3, mx.uint64), mx.array(1e-2)
    return {"step": step, "learning_rate": rate, **state}


def rounded(state):
    """Return a full state as it is after it was in 8 bits."""

    def round_one(array, kind):
        if array.ndim < 2:
            return array
        return widen(*quantize(array, kind)).reshape(array.shape)

    return {
        name: value
        if isinstance(value, mx.array)
        else {
            "m": round_one(value["m"], "signed"),
            "v": round_one(value["v"], "root"),
        }
        for name, value in state.items()
    }


def moments_of(state):
    """Return the arrays of a state that a file would hold, by name."""
    return {k: a for k, a in tree_flatten(state) if k.split(".")[-1] in ("m", "v")}
