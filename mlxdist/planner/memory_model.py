"""The model to train, and the memory of a rank that trains it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from ..layout import Entry, KeyPath, Plan, Strategy, make_plan
from ..layout.memory import (
    ELEMENTWISE,
    PROCESS_BYTES,
    STATE_COPIES,
    MeanDtype,
    Memory,
    MemoryOptions,
    largest_memory,
    state_bytes,
)
from ..layout.state_blocks import BLOCK

_EQUAL_TENSORS = 256  # matrices that stand for a model known only by its size


@dataclass(frozen=True)
class Model:
    """The parameters to train and the optimizer, for which memory and time are planned.

    Attributes:
        entries: the trained parameters.
        optimizer: a key of STATE_COPIES.
        bucket_size: bytes of a communication bucket.
        frozen_bytes: bytes of parameters that are not trained.
        is_known_by_size: whether `entries` stand for tensors of unknown shapes.

    Raises:
        ValueError: the optimizer is unknown.
    """

    entries: tuple[Entry, ...]
    optimizer: str
    bucket_size: int
    frozen_bytes: int = 0
    is_known_by_size: bool = False

    def __post_init__(self) -> None:
        if self.optimizer not in STATE_COPIES:
            known = ", ".join(STATE_COPIES)
            raise ValueError(f"unknown optimizer {self.optimizer!r}; choose {known}")

    @cached_property
    def parameter_bytes(self) -> int:
        return sum(entry.nbytes for entry in self.entries)

    @cached_property
    def elements(self) -> int:
        return sum(entry.size for entry in self.entries)

    @property
    def has_16_bit_parameters(self) -> bool:
        return self.dtype_of_16_bits is not None

    @property
    def dtype_of_16_bits(self) -> MeanDtype | None:
        """The dtype of the first parameters that have 16 bits; None without any."""
        dtypes = (entry.dtype for entry in self.entries)
        names: tuple[MeanDtype, ...] = ("bfloat16", "float16")
        return next((n for d in dtypes for n in names if n == d), None)

    @property
    def strategies(self) -> tuple[Strategy, ...]:
        """Sharding strategies the optimizer supports; `shard=True` selects the last."""
        if self.optimizer not in ELEMENTWISE:
            return ("replicated", "tensors")
        return ("replicated", "tensors", "elements")

    def require_known_state(self) -> None:
        """Raise ValueError if the optimizer's state can't be kept in 8 bits."""
        if self.optimizer not in ELEMENTWISE:
            raise ValueError(
                f"state_dtype int8 is for {', '.join(sorted(ELEMENTWISE))}, and not "
                f"for {self.optimizer}"
            )

    def state_bytes(self, entry: Entry, elements: int, options: MemoryOptions) -> int:
        """Return the bytes of optimizer state of some elements of a parameter."""
        return state_bytes(entry, elements, self.optimizer, options)

    def plan(self, ranks: int, strategy: Strategy, *, block: int = 1) -> Plan:
        """Return the sharding plan; it is computed once per argument tuple.

        Args:
            block: elements that stay together on a rank: BLOCK with state in 8 bits.
        """
        key = (ranks, strategy, block)
        if key not in self._plans:
            plain = MemoryOptions()
            self._plans[key] = make_plan(
                self.entries,
                ranks,
                strategy=strategy,
                bucket_size=self.bucket_size,
                block=block,
                costs={
                    e.path: float(self.state_bytes(e, e.size, plain))
                    for e in self.entries
                },
            )
        return self._plans[key]

    @cached_property
    def _plans(self) -> dict[tuple[int, Strategy, int], Plan]:
        return {}


def model_of_size(
    elements: int, dtype: str, optimizer: str, *, bucket_size: int, frozen: int = 0
) -> Model:
    """Return a model of `elements` parameters, cut into matrices of equal size.

    Their rows have whole blocks of 8-bit state. What is left over is a vector.

    Args:
        frozen: bytes of parameters that are not trained.

    Raises:
        ValueError: `elements` is below 1, or the optimizer is unknown.
    """
    if elements < 1:
        raise ValueError(f"{elements} parameters; there must be at least one")
    size = elements // _EQUAL_TENSORS
    side = math.isqrt(size)
    columns = side // BLOCK * BLOCK or side
    rows = size // columns if columns else 0
    entries: Sequence[Entry] = [
        Entry(KeyPath(("layers", index)), (rows, columns), dtype)
        for index in range(_EQUAL_TENSORS if rows else 0)
    ]
    if rest := elements - len(entries) * rows * columns:
        entries = [*entries, Entry(KeyPath(("rest",)), (rest,), dtype)]
    return Model(tuple(entries), optimizer, bucket_size, frozen, is_known_by_size=True)


def memory(
    model: Model,
    ranks: int,
    strategy: Strategy,
    options: MemoryOptions | None = None,
) -> Memory:
    """Return the memory of the rank that needs most, without activations."""
    options = options or MemoryOptions()
    return largest_memory(
        model.plan(ranks, strategy, block=BLOCK if options.state_dtype else 1),
        options,
        lambda entry, elements: model.state_bytes(entry, elements, options),
        frozen=model.frozen_bytes,
        process=PROCESS_BYTES,
    )
