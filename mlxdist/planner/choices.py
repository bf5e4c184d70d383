"""Choices that change the memory of a rank, the cheapest change of behaviour first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal, get_args

from ..layout import Strategy
from ..layout.memory import ELEMENTWISE, Memory, MemoryOptions
from .memory_model import Model, memory
from .time_model import imbalance

# The cheapest first. Results stay the same with the first two. The third sends more.
# The next three round what is kept. The last gives up a check: a step of nan is taken.
Change = Literal[
    "shard",
    "minimize",
    "sharded sums",
    "24bit",
    "int8",
    "means",
    "unchecked",
]
CHANGES: tuple[Change, ...] = get_args(Change)
_FREE = frozenset({"shard", "minimize"})

# A busiest host that sends this many times its share makes sharding slow.
MOST_IMBALANCE = 1.25
_LEAST_SAVING = 0.02  # of the memory: a change that saves less is not worth it


@dataclass(frozen=True)
class Choice:
    """One way to train the model, and the memory of the rank that needs most.

    Attributes:
        changes: what differs from replicated state and `update`, in the order of
            CHANGES.
        imbalance: see time_model.imbalance.
    """

    changes: tuple[Change, ...]
    strategy: Strategy
    options: MemoryOptions
    memory: Memory
    imbalance: float = 1.0

    @property
    def is_free(self) -> bool:
        """Whether it gives the same results, and takes no longer."""
        return _FREE.issuperset(self.changes) and self.imbalance <= MOST_IMBALANCE

    def fits(self, available: float | None) -> bool:
        return available is None or self.memory.total <= available


def list_choices(model: Model, ranks: int, options: MemoryOptions) -> list[Choice]:
    """Return the choices that save memory, the cheapest change of behaviour first.

    A choice is listed if it needs less memory than all that are cheaper.

    Args:
        options: what the user has decided already. Masters in float32 may become
            masters of 24 bits, but are never left out.
    """
    possible = [
        _choice(model, ranks, options, each) for each in _changes(model, ranks, options)
    ]
    usable = [choice for choice in possible if choice is not None]
    listed: list[Choice] = []
    for choice in sorted(usable, key=_cost):
        least = listed[-1].memory.total if listed else None
        if least is None or choice.memory.total < (1 - _LEAST_SAVING) * least:
            listed.append(choice)
    return listed


def recommend(listed: Sequence[Choice], available: float | None) -> Choice | None:
    """Return the cheapest choice that fits, or None.

    Args:
        available: bytes of a rank. None takes the one with the least memory of those
            that change no results and take no longer.
    """
    if available is None:
        return [choice for choice in listed if choice.is_free][-1]
    return next((choice for choice in listed if choice.fits(available)), None)


def _changes(
    model: Model, ranks: int, options: MemoryOptions
) -> Iterator[tuple[Change, ...]]:
    """Yield each combination of the changes that this model and these ranks allow."""
    able = {
        "shard": ranks > 1,
        "24bit": model.has_16_bit_parameters,
        "means": model.has_16_bit_parameters and ranks > 1,
        "sharded sums": options.accumulate > 1,
        "int8": model.optimizer in ELEMENTWISE,
    }
    allowed = [change for change in CHANGES if able.get(change, True)]
    for flags in product((False, True), repeat=len(allowed)):
        yield tuple(c for c, flag in zip(allowed, flags, strict=True) if flag)


def _choice(
    model: Model, ranks: int, options: MemoryOptions, changes: tuple[Change, ...]
) -> Choice | None:
    """Return the choice with some changes; None where one of them changes nothing."""
    strategy: Strategy = "replicated"
    for change in changes:
        before = options
        if change == "shard":
            strategy = model.strategies[-1]
            continue
        if change == "minimize":
            options = replace(options, minimize=True)
        elif change == "sharded sums" and strategy != "replicated":
            options = replace(options, accumulate_sharded=True)
        elif change == "24bit" and options.master_dtype == "float32":
            options = replace(options, master_dtype="24bit")
        elif change == "int8":
            options = replace(options, state_dtype="int8")
        elif change == "means" and _means_can_be_rounded(strategy, options):
            options = replace(options, mean_dtype=model.dtype_of_16_bits)
        elif change == "unchecked":
            options = replace(options, check_finite=False)
        if options == before:
            return None
    size = memory(model, ranks, strategy, options)
    return Choice(changes, strategy, options, size, imbalance(model, ranks, strategy))


def _means_can_be_rounded(strategy: Strategy, options: MemoryOptions) -> bool:
    """Whether this rank's shares of the means wait in a dtype of more than 16 bits."""
    is_wide = options.master_dtype is not None or options.state_dtype is not None
    return strategy != "replicated" and is_wide and not options.accumulate_sharded


def _cost(choice: Choice) -> int:
    """Order by the most expensive change, then by the next.

    Sharding that leaves one rank with most of the sending comes after `minimize`.
    """
    order = list(CHANGES)
    if choice.imbalance > MOST_IMBALANCE:
        order[0:2] = order[1::-1]
    return sum(1 << order.index(change) for change in choice.changes)
