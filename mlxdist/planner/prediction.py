"""All predictions for a number of hosts: choices, their memory, and step times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..layout import Strategy
from ..layout.memory import MemoryOptions
from .choices import Choice, list_choices, recommend
from .memory_model import Model
from .time_model import Link, StepTime, step_time


@dataclass(frozen=True)
class Prediction:
    """What is predicted for a number of hosts.

    Attributes:
        choices: see `choices.list_choices`.
        recommended: the cheapest of them that fits; None if none does.
        step_times: by strategy and link name, for the recommended options.
    """

    ranks: int
    choices: Sequence[Choice]
    recommended: Choice | None
    step_times: Mapping[Strategy, Mapping[str, StepTime]]

    @property
    def best(self) -> Choice:
        """The recommended choice, or the one with the least memory if none fits."""
        return self.recommended or self.choices[-1]

    @property
    def times(self) -> Mapping[str, StepTime]:
        """Step times of the best choice, by link name."""
        return self.step_times[self.best.strategy]


def predict(
    model: Model,
    ranks: int,
    links: Sequence[Link],
    *,
    options: MemoryOptions | None = None,
    local: float = 0.0,
    update: float = 0.0,
    available: float | None = None,
) -> Prediction:
    """Predict memory and step time on `ranks` hosts.

    Args:
        options: what the user has decided already.
        local, update: see time_model.step_time.
        available: bytes of a rank; None if unknown.
    """
    options = options or MemoryOptions()
    listed = list_choices(model, ranks, options)
    recommended = recommend(listed, available)
    sharded_sums = (recommended or listed[-1]).options.accumulate_sharded

    def time(strategy: Strategy, link: Link) -> StepTime:
        return step_time(
            model,
            ranks,
            strategy,
            link,
            local=local,
            update=update,
            accumulate=options.accumulate,
            accumulate_sharded=sharded_sums,
        )

    times = {s: {link.name: time(s, link) for link in links} for s in model.strategies}
    return Prediction(ranks, listed, recommended, times)
