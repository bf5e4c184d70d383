"""The prediction for a number of hosts: memory, step time, and the strategy to use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ..layout import Strategy
from .memory_model import Memory, Model, memory
from .time_model import Link, StepTime, imbalance, step_time

# A busiest host that sends this many times its share makes sharding too slow to be
# worth the memory it saves.
MOST_IMBALANCE = 1.25
_LEAST_SAVING = 0.02  # of the memory: sharding that saves less is not worth it

Reason = Literal[
    "too large", "one rank", "needed", "saves little", "unbalanced", "saves"
]


@dataclass(frozen=True)
class Choice:
    """The strategy to use, and the figures that decided it.

    Attributes:
        reason: "too large": not even the sharded state fits into the memory;
            "one rank": there is nothing to shard; "needed": only sharding fits;
            "saves little": sharding saves almost no memory; "unbalanced": sharding
            saves memory, but one rank would send much more than the others;
            "saves": sharding saves memory and costs nothing.
        replicated, sharded: bytes per rank with replicated state, and with the
            optimizer's own sharding strategy.
        available: bytes a rank has for them; None if unknown.
        imbalance: see time_model.imbalance.
    """

    strategy: Strategy
    reason: Reason
    replicated: int
    sharded: int
    available: float | None
    imbalance: float

    @property
    def fits(self) -> bool:
        return self.reason != "too large"


def choose(model: Model, ranks: int, available: float | None = None) -> Choice:
    """Choose how to shard the optimizer's state over `ranks`.

    Args:
        available: bytes per rank for what `memory` counts.
    """
    best: Strategy = model.strategies[-1] if ranks > 1 else "replicated"
    replicated = memory(model, ranks, "replicated").total
    sharded = memory(model, ranks, best).total
    sent = imbalance(model, ranks, best)
    reason: Reason = "saves"
    if available is not None and sharded > available:
        reason = "too large"
    elif ranks == 1:
        reason = "one rank"
    elif available is not None and replicated > available:
        reason = "needed"
    elif replicated - sharded < _LEAST_SAVING * replicated:
        reason = "saves little"
    elif sent > MOST_IMBALANCE:
        reason = "unbalanced"
    strategy = "replicated" if reason in ("saves little", "unbalanced") else best
    return Choice(strategy, reason, replicated, sharded, available, sent)


@dataclass(frozen=True)
class Prediction:
    """Memory and step time on `ranks` hosts, by strategy; times also by link name."""

    ranks: int
    choice: Choice
    memory: Mapping[Strategy, Memory]
    step_times: Mapping[Strategy, Mapping[str, StepTime]]


def predict(
    model: Model,
    ranks: int,
    links: Sequence[Link],
    *,
    local: float = 0.0,
    update: float = 0.0,
    available: float | None = None,
) -> Prediction:
    """Predict memory and step time on `ranks` hosts, for each strategy and link.

    Args:
        local, update: see time_model.step_time.
        available: see `choose`.
    """
    return Prediction(
        ranks,
        choose(model, ranks, available),
        {s: memory(model, ranks, s) for s in model.strategies},
        {
            strategy: {
                link.name: step_time(
                    model, ranks, strategy, link, local=local, update=update
                )
                for link in links
            }
            for strategy in model.strategies
        },
    )
