"""What a rank has to hold: parameters, gradients, state, buffers, as pure numbers."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from ..layout.entries import ITEM_SIZES, Entry
from ..layout.sharding import Plan, Strategy, make_plan

Mode = Literal["replicated", "elements", "tensors"]

# Arrays as large as the parameters that each optimizer of MLX keeps. Adafactor keeps a
# row and a column of each matrix instead.
STATE_COPIES = {
    "sgd": 1,  # kept whether or not momentum is used
    "rmsprop": 1,
    "adagrad": 1,
    "adadelta": 2,
    "adam": 2,
    "adamw": 2,
    "adamax": 2,
    "lion": 1,
    "muon": 1,
    "adafactor": 0,
}
_BY_TENSOR = ("muon", "adafactor")  # their update looks at whole tensors
_FLOATS = ("float64", "float32", "float16", "bfloat16")
_EQUAL_TENSORS = 256  # into which a bare number of parameters is cut


@dataclass(frozen=True)
class Model:
    """What is trained: its parameters and the optimizer's name, of STATE_COPIES."""

    entries: tuple[Entry, ...]
    optimizer: str
    bucket_size: int
    left_out: int = 0  # bytes of tensors that are not trained: integers

    @property
    def parameter_bytes(self) -> int:
        return sum(entry.nbytes for entry in self.entries)

    @property
    def elements(self) -> int:
        return sum(entry.size for entry in self.entries)

    def state_bytes(self, entry: Entry) -> int:
        """Of one parameter's whole state, in its own dtype."""
        if self.optimizer == "adafactor":
            if len(entry.shape) < 2:
                return entry.nbytes
            rows = math.prod(entry.shape[:-1])
            columns = math.prod((*entry.shape[:-2], entry.shape[-1]))
            return (rows + columns) * ITEM_SIZES[entry.dtype]
        return STATE_COPIES[self.optimizer] * entry.nbytes

    @property
    def modes(self) -> tuple[Mode, ...]:
        """How its state can be kept; what `shard=True` takes comes last."""
        if self.optimizer in _BY_TENSOR:
            return ("replicated", "tensors")
        return ("replicated", "tensors", "elements")

    @cached_property
    def _plans(self) -> dict[tuple[int, Strategy], Plan]:
        return {}

    def plan(self, ranks: int, mode: Strategy) -> Plan:
        """Made once: tables ask for the same ones again and again."""
        if (ranks, mode) not in self._plans:
            self._plans[ranks, mode] = self._made(ranks, mode)
        return self._plans[ranks, mode]

    def _made(self, ranks: int, mode: Strategy) -> Plan:
        costs = {entry.path: float(self.state_bytes(entry)) for entry in self.entries}
        return make_plan(
            self.entries,
            ranks,
            strategy=mode,
            bucket_size=self.bucket_size,
            costs=costs,
        )


@dataclass(frozen=True)
class Memory:
    """Bytes of the rank that needs most: without activations and the process itself."""

    parameters: int
    gradients: int
    state: int
    buffers: int

    @property
    def total(self) -> int:
        return self.parameters + self.gradients + self.state + self.buffers


def model_of_size(
    elements: int, dtype: str, optimizer: str, *, bucket_size: int
) -> Model:
    """A model of which only the number of parameters is known: as equal matrices.

    Raises:
        ValueError: there are none.
    """
    if elements < 1:
        raise ValueError(f"{elements} parameters; there must be at least one")
    side = math.isqrt(elements // _EQUAL_TENSORS)
    entries = [
        Entry(f"layers.{index}", (side, side), dtype)
        for index in range(_EQUAL_TENSORS if side else 0)
    ]
    if rest := elements - len(entries) * side * side:
        entries.append(Entry("rest", (rest,), dtype))
    return Model(tuple(entries), _known(optimizer), bucket_size)


def model_of_files(paths: Sequence[Path], optimizer: str, *, bucket_size: int) -> Model:
    """A model in safetensors files; reads their headers alone.

    Raises:
        ValueError: a file is no safetensors file, or holds nothing to train.
    """
    entries, left_out = [], 0
    for path in paths:
        floats, others = _tensors_in(path)
        entries += floats
        left_out += others
    if not any(entry.size for entry in entries):
        raise ValueError(f"{', '.join(map(str, paths))}: no float tensor to train")
    return Model(tuple(entries), _known(optimizer), bucket_size, left_out)


def _known(optimizer: str) -> str:
    if optimizer not in STATE_COPIES:
        raise ValueError(
            f"optimizer {optimizer!r}; known are {', '.join(STATE_COPIES)}"
        )
    return optimizer


def memory(model: Model, ranks: int, mode: Mode) -> Memory:
    """Of the rank that needs most."""
    plan = model.plan(ranks, mode)
    state = {entry.path: model.state_bytes(entry) for entry in model.entries}
    sizes = {entry.path: entry.size for entry in model.entries}
    most = max(
        sum(
            math.ceil(state[path] * (stop - start) / sizes[path])
            for path, (start, stop) in plan.shard(rank).items()
            if sizes[path]
        )
        for rank in range(ranks)
    )
    nbytes = model.parameter_bytes
    largest = max(bucket.nbytes for bucket in plan.buckets)
    return Memory(nbytes, nbytes, most, 2 * largest if ranks > 1 else 0)


def gigabytes(nbytes: float) -> str:
    """`1.5 GB`, of 10^9 bytes."""
    return f"{short(nbytes / 1e9)} GB"


def short(number: float) -> str:
    """Three digits, or all of a larger whole one."""
    return f"{number:,.0f}" if number >= 1000 else f"{number:.3g}"


def _tensors_in(path: Path) -> tuple[list[Entry], int]:
    """A file's float tensors, and the bytes of all others."""
    from ..checkpoint.block_file import Reader
    from ..checkpoint.safetensors import tensors_of

    reader = Reader(Path(os.path.realpath(path)))  # a hub's cache is full of links
    try:
        found = tensors_of(reader)
    finally:
        reader.close()
    floats = [one for one in found if one.dtype in _FLOATS]
    entries = [Entry(one.name, one.shape, one.dtype) for one in floats]
    for one, entry in zip(floats, entries, strict=True):
        if one.nbytes != entry.nbytes:
            raise ValueError(
                f"{path} is no safetensors file: {entry} has {one.nbytes} bytes"
            )
    return entries, sum(one.nbytes for one in found if one.dtype not in _FLOATS)
