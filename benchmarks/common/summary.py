"""Medians of samples, and ratios of medians with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 2000


class Summary(NamedTuple):
    """Order statistics of samples, in their unit."""

    median: float
    quartiles: tuple[float, float]
    extremes: tuple[float, float]
    number: int


class Ratio(NamedTuple):
    """A ratio of two medians with its 95% interval."""

    ratio: float
    interval: tuple[float, float]


def summarize(samples: Sequence[float]) -> Summary:
    low, median, high = np.quantile(samples, [0.25, 0.5, 0.75])
    extremes = float(min(samples)), float(max(samples))
    return Summary(float(median), (float(low), float(high)), extremes, len(samples))


def ratio_of(numerator: Sequence[float], denominator: Sequence[float]) -> Ratio:
    """Return median(numerator) / median(denominator) of interleaved samples.

    The interval is a bootstrap over rounds: sample i of both belongs to one round, so
    they are resampled in pairs (Efron, Tibshirani, An Introduction to the Bootstrap,
    1993). Where the counts differ, each is resampled independently.
    """
    a, b = np.asarray(numerator, float), np.asarray(denominator, float)
    random = np.random.default_rng(0)
    chosen_a = random.integers(0, a.size, (RESAMPLES, a.size))
    chosen_b = (
        chosen_a
        if a.size == b.size
        else random.integers(0, b.size, (RESAMPLES, b.size))
    )
    ratios = np.median(a[chosen_a], axis=1) / np.median(b[chosen_b], axis=1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return Ratio(float(np.median(a) / np.median(b)), (float(low), float(high)))
