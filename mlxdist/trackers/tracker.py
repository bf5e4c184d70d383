"""`Tracker`: what a report goes to, such as a file or a service."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Tracker(Protocol):
    """A class with these two methods. Rank 0 alone calls them.

    What they raise is a warning, and training goes on.
    """

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record the values of a report. Steps never decrease.

        Args:
            values: finite or not, with "train_loss" or "val_loss" among them.
        """

    def finish(self) -> None:
        """End the run: write what is left, and close."""
