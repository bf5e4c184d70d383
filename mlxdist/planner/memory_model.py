"""Memory of a rank: parameters, gradients, optimizer state and buffers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from ..layout import ITEM_SIZES, Entry, KeyPath, Plan, Strategy, make_plan

# Arrays of a parameter's size that each MLX optimizer keeps. Adafactor keeps factored
# second moments instead: a row and a column of each matrix.
STATE_COPIES = {
    "sgd": 1,  # MLX allocates the velocity even without momentum
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
_NEED_WHOLE_TENSORS = ("muon", "adafactor")  # their update rule is not elementwise
_EQUAL_TENSORS = 256  # matrices that stand for a model known only by its size


@dataclass(frozen=True)
class Model:
    """The parameters to train and the optimizer, for which memory and time are planned.

    Attributes:
        entries: the trained parameters.
        optimizer: a key of STATE_COPIES.
        bucket_size: bytes of a communication bucket.
        untrained_bytes: bytes of non-float tensors, which are not trained.

    Raises:
        ValueError: the optimizer is unknown.
    """

    entries: tuple[Entry, ...]
    optimizer: str
    bucket_size: int
    untrained_bytes: int = 0

    def __post_init__(self) -> None:
        if self.optimizer not in STATE_COPIES:
            known = ", ".join(STATE_COPIES)
            raise ValueError(f"unknown optimizer {self.optimizer!r}; choose {known}")

    @property
    def parameter_bytes(self) -> int:
        return sum(entry.nbytes for entry in self.entries)

    @property
    def elements(self) -> int:
        return sum(entry.size for entry in self.entries)

    @property
    def strategies(self) -> tuple[Strategy, ...]:
        """Sharding strategies the optimizer supports; `shard=True` selects the last."""
        if self.optimizer in _NEED_WHOLE_TENSORS:
            return ("replicated", "tensors")
        return ("replicated", "tensors", "elements")

    def state_bytes(self, entry: Entry) -> int:
        """Return the bytes of one parameter's unsharded optimizer state."""
        if self.optimizer == "adafactor":
            if len(entry.shape) < 2:
                return entry.nbytes
            rows = math.prod(entry.shape[:-1])
            columns = math.prod((*entry.shape[:-2], entry.shape[-1]))
            return (rows + columns) * ITEM_SIZES[entry.dtype]
        return STATE_COPIES[self.optimizer] * entry.nbytes

    def plan(self, ranks: int, strategy: Strategy) -> Plan:
        """Return the sharding plan; it is computed once per argument pair."""
        key = (ranks, strategy)
        if key not in self._plans:
            self._plans[key] = make_plan(
                self.entries,
                ranks,
                strategy=strategy,
                bucket_size=self.bucket_size,
                costs={e.path: float(self.state_bytes(e)) for e in self.entries},
            )
        return self._plans[key]

    @cached_property
    def _plans(self) -> dict[tuple[int, Strategy], Plan]:
        return {}


@dataclass(frozen=True)
class Memory:
    """Bytes on the rank that needs most, without activations and the process itself."""

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
    """Return a model of `elements` parameters, cut into matrices of equal size.

    Raises:
        ValueError: `elements` is below 1, or the optimizer is unknown.
    """
    if elements < 1:
        raise ValueError(f"{elements} parameters; there must be at least one")
    side = math.isqrt(elements // _EQUAL_TENSORS)
    entries: Sequence[Entry] = [
        Entry(KeyPath(("layers", index)), (side, side), dtype)
        for index in range(_EQUAL_TENSORS if side else 0)
    ]
    if rest := elements - len(entries) * side * side:
        entries = [*entries, Entry(KeyPath(("rest",)), (rest,), dtype)]
    return Model(tuple(entries), optimizer, bucket_size)


def memory(model: Model, ranks: int, strategy: Strategy) -> Memory:
    """Return the memory of the rank that needs most.

    Parameters and gradients are whole on each rank; the strategy shards the state.
    Two buffers of the largest bucket's size hold data in flight.
    """
    plan = model.plan(ranks, strategy)
    state = {entry.path: model.state_bytes(entry) for entry in model.entries}
    sizes = {entry.path: entry.size for entry in model.entries}
    largest_shard = max(
        sum(
            math.ceil(state[path] * (stop - start) / sizes[path])
            for path, (start, stop) in plan.shard(rank).items()
            if sizes[path]
        )
        for rank in range(ranks)
    )
    largest_bucket = max(bucket.nbytes for bucket in plan.buckets)
    return Memory(
        parameters=model.parameter_bytes,
        gradients=model.parameter_bytes,
        state=largest_shard,
        buffers=2 * largest_bucket if ranks > 1 else 0,
    )
