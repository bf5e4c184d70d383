"""Which checkpoints of a folder are this run's, so that a save may remove them."""

from __future__ import annotations

from pathlib import Path

_first_serials: dict[Path, int] = {}  # of this process's run in each folder


def resumed(folder: Path) -> None:
    """Take over all checkpoints of a folder: the run continues what is there."""
    _first_serials[folder] = 0


def first_serial(folder: Path, saved: int) -> int:
    """Return the lowest serial of the run, which has just saved one.

    A run that did not load from the folder leaves alone what was there before it.
    """
    return _first_serials.setdefault(folder, saved)
