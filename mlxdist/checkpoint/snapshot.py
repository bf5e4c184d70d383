"""What this rank has to save: arrays of the model, the optimizer and the user."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass

import mlx.core as mx

from ..arrays.dtypes import dtype_name
from ..arrays.numpy_view import raw
from ..arrays.trees import all_parameters
from ..arrays.types import Array, Tree
from ..optim.resumable_state import ResumableState, StateArray
from . import user_data
from .manifest import Identity, Json
from .partition import LocalPart
from .user_data import Sampler


@dataclass(frozen=True)
class Snapshot:
    """What this rank has to save, evaluated.

    Attributes:
        replicated: arrays that all ranks hold.
        sharded: this rank's part of the state, if it is sharded.
        buffers: texts of the paths of parameters that are not trained, and may differ
            over ranks.
    """

    replicated: dict[Identity, Array]
    sharded: dict[Identity, StateArray]
    buffers: list[str]
    extra: Json
    sampler: dict[str, Json] | None

    @property
    def compared(self) -> dict[Identity, Array]:
        """Arrays that have to be the same on all ranks."""
        buffers = {("parameters", path, "") for path in self.buffers}
        return {k: array for k, array in self.replicated.items() if k not in buffers}

    @property
    def local_parts(self) -> list[LocalPart]:
        """This rank's part of sharded state, as a report to the other ranks."""
        return [
            LocalPart(
                path,
                key,
                dtype_name(array.dtype),
                shape,
                start,
                stop,
                checksum=0 if shape else zlib.crc32(raw(array).data),
            )
            for (_, path, key), (array, shape, start, stop) in self.sharded.items()
        ]


def take_snapshot(
    model: Tree, state: ResumableState, extra: object, sampler: Sampler | None
) -> Snapshot:
    """Evaluate everything that is to be saved.

    Raises:
        ValueError: if something can't be saved.
    """
    parameters = all_parameters(model)
    replicated: dict[Identity, Array] = {
        ("parameters", path.text, ""): array for path, array in parameters.items()
    }
    replicated |= scalars(state)
    sharded: dict[Identity, StateArray] = {
        ("optimizer", path.text, key): array
        for path, arrays in state.arrays().items()
        for key, array in arrays.items()
    }
    # In one call, since arrays of the last step may wait for a collective.
    mx.eval(list(replicated.values()), [part.array for part in sharded.values()])
    encoded, arrays = user_data.encode(extra)
    replicated |= {("extra", path, ""): array for path, array in arrays.items()}
    if not state.plan.sharded:
        replicated |= {identity: part.array for identity, part in sharded.items()}
        sharded = {}
    position = None if sampler is None else _position(sampler)
    by_path = state.plan.by_path
    buffers = [path.text for path in parameters if path not in by_path]
    return Snapshot(replicated, sharded, buffers, encoded, position)


def _position(sampler: Sampler) -> dict[str, Json]:
    position = sampler.state_dict()
    try:
        json.dumps(position, allow_nan=False)
        if not isinstance(position, dict) or not _has_text_keys(position):
            raise ValueError("it must be a dict, and all keys of dicts text")
    except (TypeError, ValueError) as error:
        raise ValueError(f"the sampler's state_dict() is no JSON: {error}") from None
    return position


def _has_text_keys(value: Json) -> bool:
    """Return whether all keys are text: JSON would turn a number into text."""
    if isinstance(value, dict):
        are_text = all(isinstance(key, str) for key in value)
        return are_text and all(map(_has_text_keys, value.values()))
    return not isinstance(value, list | tuple) or all(map(_has_text_keys, value))


def scalars(state: ResumableState) -> dict[Identity, Array]:
    """Return the step, learning rate and the like of each optimizer."""
    return {
        ("scalars", at.rstrip("."), name): array
        for (at, name), array in state.scalars().items()
    }
