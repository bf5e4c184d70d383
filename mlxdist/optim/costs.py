"""What it costs to own a tensor, so that whole tensors are dealt out fairly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import mlx.optimizers as optim

from ..layout.entries import Entry
from .inner import owner_of

# Arithmetic that takes as long as moving one element and its state through memory.
_FLOPS_PER_ELEMENT = 64


def work(optimizer: Any, entry: Entry) -> float:
    """An update's work, in elements that are merely read and written.

    Muon's Newton-Schulz iteration on an (m, n) matrix, m <= n, takes 4 m^2 n + 2 m^3
    multiplications and additions a step (Jordan et al., "Muon", 2024).
    """
    if not isinstance(optimizer, optim.Muon) or len(entry.shape) < 2:
        return float(entry.size)
    rows = entry.shape[0]
    m, n = sorted((rows, math.prod(entry.shape[1:])))
    flops = int(optimizer.ns_steps) * (4.0 * m * m * n + 2.0 * m**3)
    return entry.size + flops / _FLOPS_PER_ELEMENT


def costs(optimizer: Any, entries: Sequence[Entry]) -> dict[str, float]:
    """Each tensor's share of all work, and of all bytes, which both are to even out.

    Args:
        optimizer: a resolved one.
    """
    works = {e.path: work(owner_of(optimizer, e.path), e) for e in entries}
    all_work = sum(works.values()) or 1.0
    all_bytes = sum(entry.nbytes for entry in entries) or 1
    return {e.path: works[e.path] / all_work + e.nbytes / all_bytes for e in entries}
