"""The step of moments in 8 bits: widened, stepped by the optimizer, quantized again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import mlx.core as mx
import numpy as np

from ..arrays import host_blocks
from ..arrays.blockwise import (
    Blocks,
    Kind,
    phases_at,
    quantize,
    rows_at,
    widen,
)
from ..arrays.numpy_view import raw
from ..arrays.types import Array, Dtype, Pieces, Tree
from .hyperparameters import Optimizer
from .quantized_state import CODES, SCALES
from .weight_copies import WeightCopies

Moments = tuple[tuple[str, Kind], ...]  # (key in the state, how it is kept)
State = dict[str, Tree]  # of a parameter: arrays, and dicts of codes and scales


def update_dtype(dtype: Dtype, moments: Moments) -> Dtype:
    """Return the dtype in which a parameter of `dtype` is updated."""
    return mx.float32 if moments and dtype.size < mx.float32.size else dtype


def put_quantized(state: State, moments: Moments) -> None:
    """Quantize the moments that are not in 8 bits, to nearest."""
    for key, kind in moments:
        if isinstance(state.get(key), mx.array):
            state[key] = _as_dict(quantize(state[key], kind))


def widened(state: State, moments: Moments, shape: tuple[int, ...]) -> State:
    """Return a state with its moments in float32, in the shape of the parameter."""
    wide = {key: widen(**state[key]).reshape(shape) for key, _ in moments}
    return {**state, **wide}


def apply_wide(
    copies: WeightCopies,
    leaf: Optimizer,
    gradient: Array,
    parameter: Array,
    wide: State,
) -> Array:
    """Take one optimizer's step on a parameter whose moments are in float32.

    Args:
        gradient: in the dtype in which the parameter is updated.
    """
    current = parameter
    if not copies.masters.applies_to(parameter):
        current = parameter.astype(gradient.dtype)
    return copies.apply(leaf, gradient, current, wide).astype(parameter.dtype)


def quantized(
    stepped: Array,
    wide: State,
    moments: Moments,
    step: Array,
    blocks: Array,
) -> tuple[Array, State]:
    """Return a new parameter and its state, with moments in 8 bits.

    The parameter depends on its state, which so is evaluated with it: what is evaluated
    later would keep the float32 moments in memory until then.

    Args:
        blocks: the numbers of the parameter's blocks in its tensor.
    """
    state = dict(wide)
    for number, (key, kind) in enumerate(moments):
        phases = phases_at(step, blocks, number)
        state[key] = _as_dict(quantize(wide[key], kind, phases))
    codes = [array for key, _ in moments for array in state[key].values()]
    return mx.depends([stepped], codes)[0], state


def widened_by_host(state: State, moments: Moments, shape: tuple[int, ...]) -> State:
    """Return what `widened` does, computed by the host.

    Each evaluation waits for MLX's thread, as long as a part's kernel where cores are
    busy. So all arrays are evaluated at once.
    """
    mx.eval([state[key] for key, _ in moments])
    wide = {key: host_blocks.widen(**state[key], shape=shape) for key, _ in moments}
    return {**state, **wide}


def quantized_by_host(
    stepped: Array, wide: State, moments: Moments, step: Array, blocks: Array
) -> tuple[Array, State]:
    """Return what `quantized` does, computed by the host, all evaluated."""
    state = dict(wide)
    mx.eval(stepped, wide, step)
    numbers = raw(blocks, np.uint32)
    for number, (key, kind) in enumerate(moments):
        rows = rows_at(step.item(), numbers, number)
        state[key] = _as_dict(host_blocks.quantize(wide[key], kind, rows))
    return stepped, state


def _as_dict(blocks: Blocks) -> dict[str, Array]:
    return {CODES: blocks.codes, SCALES: blocks.scales}


# -- states as flat dicts

Key = tuple[str, ...]  # (key,), or (key, "codes")


def leaf_keys(state: State) -> Iterable[Key]:
    """Return the keys of all arrays of a parameter's state."""
    for key, value in state.items():
        if isinstance(value, dict):
            yield from ((key, inner) for inner in value)
        else:
            yield (key,)


def container_of(state: State, key: Key) -> State:
    """Return the dict that holds an array of a parameter's state."""
    inner: State = state if len(key) == 1 else state[key[0]]
    return inner


def leaf_at(state: State, key: Key) -> Array:
    """Return an array of a parameter's state."""
    return container_of(state, key)[key[-1]]


def put_leaf(state: State, key: Key, array: Array) -> None:
    """Replace an array of a parameter's state; a dict in it is replaced, too."""
    if len(key) == 1:
        state[key[0]] = array
    else:
        state[key[0]] = {**state.get(key[0], {}), key[1]: array}


def leaves_at(states: Sequence[State], key: Key) -> Pieces:
    """Return the arrays at one key of many parameters' states."""
    if len(key) == 1:
        return [state[key[0]] for state in states]
    return [state[key[0]][key[1]] for state in states]


def put_leaves(states: Sequence[State], key: Key, arrays: Pieces) -> None:
    """Replace the arrays at one key of many parameters' states."""
    is_array = len(key) == 1  # a call for each of thousands of tensors takes time
    for state, array in zip(states, arrays, strict=True):
        if is_array:
            state[key[0]] = array
        else:
            put_leaf(state, key, array)
