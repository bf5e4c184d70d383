"""The arguments of `save_checkpoint`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..world.world import World
from .directory import NO_FOLDER, resolve


def step_as_int(step: Any) -> Any:
    """Return a step as an int where it is one of NumPy's.

    Raises:
        ValueError: if it is so large that Python refuses to write it down.
    """
    if isinstance(step, int) and step.bit_length() > 64:
        raise ValueError("step is out of range; it must be less than 10**16")
    return int(step) if isinstance(step, np.integer) else step


class SaveRequest(NamedTuple):
    """The arguments of `save_checkpoint`; `folder` is `name` as a path of this host."""

    name: str
    folder: Path
    step: int
    keep: int | None
    background: bool

    @classmethod
    def of(
        cls, folder: object, step: object, keep: int | None, *, background: bool
    ) -> SaveRequest:
        """Read the arguments. Raises an error of any kind if they can't be read."""
        number = step_as_int(step)
        return cls(str(folder), resolve(folder), number, keep, background)

    @property
    def number(self) -> int | None:
        """The step; None if it is not valid."""
        return self.step if type(self.step) is int else None

    @property
    def lines(self) -> list[str]:
        """What has to be the same on all ranks."""
        options = f"keep {self.keep}, background {self.background}"
        return [f"folder {self.name}", f"to be saved as step {self.step}", options]

    def problem(self, world: World) -> str | None:
        """Return which argument is not valid, and why."""
        if self.folder == NO_FOLDER:
            return f"folder is {self.name}; it must be a path"
        if isinstance(self.step, bool) or not isinstance(self.step, int):
            return f"step is {self.step!r}; it must be a whole number"
        if not 0 <= self.step < 10**16:
            return f"step is {self.step}; it must be 0 or more"
        if self.keep is not None and not (isinstance(self.keep, int) and self.keep > 0):
            return f"keep is {self.keep!r}; it must be 1 or more, or None for all"
        if self.background and world.size > 1 and world.host_transport is None:
            return "background=True works only over MPI; leave it out"
        return None
