"""Medians, ratios and their spread."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RESAMPLINGS = 2000


class Summary(NamedTuple):
    """What samples amount to, in their unit."""

    median: float
    quartiles: tuple[float, float]
    extremes: tuple[float, float]
    number: int


class Ratio(NamedTuple):
    """The ratio of two medians and the interval that holds it 19 times in 20."""

    ratio: float
    interval: tuple[float, float]

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.ratio:.3f} ({low:.3f} to {high:.3f})"


def summarize(samples: Sequence[float]) -> Summary:
    low, median, high = np.quantile(samples, [0.25, 0.5, 0.75])
    extremes = float(min(samples)), float(max(samples))
    return Summary(float(median), (float(low), float(high)), extremes, len(samples))


def ratio_of(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """median(ours) / median(theirs), of samples taken in turns.

    The interval is a bootstrap over rounds: sample i of both belongs to one round, so
    that they are drawn together (Efron, Tibshirani, An Introduction to the Bootstrap,
    1993). Where the counts differ, each is drawn by itself.
    """
    one, other = np.asarray(ours, float), np.asarray(theirs, float)
    numbers = np.random.default_rng(0)
    drawn = numbers.integers(0, one.size, (RESAMPLINGS, one.size))
    paired = one.size == other.size
    also = (
        drawn if paired else numbers.integers(0, other.size, (RESAMPLINGS, other.size))
    )
    ratios = np.median(one[drawn], axis=1) / np.median(other[also], axis=1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return Ratio(float(np.median(one) / np.median(other)), (float(low), float(high)))
