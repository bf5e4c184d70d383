"""The work of an optimizer's update, by which whole tensors are dealt out."""

from __future__ import annotations

import math

import mlx.optimizers as optim

from ..layout.entries import Entry
from .hyperparameters import Optimizer

# Arithmetic that takes as long as moving one element and its state through memory.
_FLOPS_PER_ELEMENT = 64


def work(optimizer: Optimizer, entry: Entry) -> float:
    """Return the work of an update, in elements that are only read and written.

    Muon's Newton-Schulz iteration on an (m, n) matrix, m <= n, takes 4 m^2 n + 2 m^3
    multiplications and additions a step (Jordan et al., "Muon", 2024).
    """
    if not isinstance(optimizer, optim.Muon) or len(entry.shape) < 2:
        return float(entry.size)
    m, n = sorted((entry.shape[0], math.prod(entry.shape[1:])))
    flops = int(optimizer.ns_steps) * (4.0 * m * m * n + 2.0 * m**3)
    return entry.size + flops / _FLOPS_PER_ELEMENT
