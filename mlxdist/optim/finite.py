"""Gradients that are not finite: found on all ranks together, and named."""

from __future__ import annotations

import json

import mlx.core as mx

from ..arrays.types import Flat
from ..comm.agreement import OnAllRanks, difference
from ..comm.collectives import Collectives, Weights


class NonFiniteError(FloatingPointError, OnAllRanks):
    """Gradients are nan or inf. Raised on all ranks, before anything has changed."""


def first_fault(gradients: Flat) -> str | None:
    """The first path, in order, with an element that is not finite, and how many."""
    for path in sorted(gradients):
        array = gradients[path]
        bad = (~mx.isfinite(array)).sum().item()
        if bad:
            return f"{path} has {bad} of {array.size} elements that are nan or inf"
    return None


def explain(comm: Collectives, gradients: Flat, weights: Weights, step: int) -> str:
    """Which rank's gradients are at fault, the same text on all ranks."""
    fault = first_fault(gradients) if weights.own else None
    told = json.dumps(fault or "all finite").encode()
    texts = [str(json.loads(text)) for text in comm.all_gather_bytes(told)]
    if set(texts) == {"all finite"}:
        texts = ["finite, but their sum is not"] * comm.size
    return (
        f"step {step} refused, nothing was changed: gradients are not finite.\n"
        f"{difference(texts)}\n"
        "skip_nonfinite=True skips such a step on all ranks and counts it."
    )
