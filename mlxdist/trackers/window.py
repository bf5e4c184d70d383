"""This rank's numbers since the last report, as a training loop gives them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import mlx.core as mx


class Window:
    """Sums of the steps since the last report.

    Args:
        trained_tokens: of this rank before the first step.
    """

    def __init__(self, trained_tokens: float = 0.0):
        self.trained_tokens = trained_tokens
        self._counts_tokens = False
        self._restart()

    def _restart(self) -> None:
        self.steps = 0
        self.weight = self.tokens = self._loss = 0.0
        self._no_numbers: dict[str, object] = {}
        self._values: Mapping[str, object] = {}

    def add(
        self,
        loss: float | mx.array,
        tokens: float | mx.array | None,
        weight: float | mx.array | None,
        values: Mapping[str, object],
    ) -> None:
        """Add a step. Of `values` a report has those of its last step."""
        if weight is None:
            weight = 1.0 if tokens is None else tokens
        counts = self._number("weight", weight)
        if counts:  # without one the loss may be nan: a mean of nothing
            self._loss += counts * self._number("train_loss", loss)
        self.weight += counts
        self._counts_tokens |= tokens is not None  # a rank without rows has 0
        trained = 0.0 if tokens is None else self._number("tokens", tokens)
        self.tokens += trained
        self.trained_tokens += trained
        self.steps += 1
        self._values = values

    def _number(self, name: str, value: float | mx.array) -> float:
        try:
            return float(value)
        except (TypeError, ValueError, RuntimeError):
            # The report refuses it on all ranks, and not this one alone.
            self._no_numbers[name] = value
            return 0.0

    def take(self, elapsed: float) -> tuple[dict[str, object], float]:
        """Return the values of a report, and this rank's weight; begin anew.

        Args:
            elapsed: seconds of all its steps.
        """
        values: dict[str, object] = {
            "train_loss": self._loss / self.weight if self.weight else math.nan,
            "iterations_per_second": self.steps / elapsed,
            **self._values,
            **self._no_numbers,
        }
        if self._counts_tokens:
            values["tokens_per_second"] = self.tokens / elapsed
            values["trained_tokens"] = self.trained_tokens
        weight = self.weight
        self._restart()
        return values, weight
