"""A report: the values of all ranks, as one value each for the run."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from ..comm.agreement import agree, ranks_text, result_or_problem
from ..comm.collectives import Collectives
from ..layout.entries import fingerprint

# Their minimum and maximum over the ranks show a straggler.
SPREAD = ("step_time", "wait_time", "peak_memory")
_RESERVED = ("step", "time", "left_out")  # of a line, and not of the user
_MOST_NAMES = 2**52  # fingerprints that a float64 tells apart


@dataclass(frozen=True)
class Report:
    """The values of one report, the same on all ranks.

    Attributes:
        step: optimizer steps taken.
        values: means over the ranks, or sums. A name of `SPREAD` comes with NAME_min,
            NAME_min_rank, NAME_max and NAME_max_rank. nan where no rank has a finite
            value.
        by_rank: each rank's own values; nan where it has none.
        left_out: ranks whose value was missing, nan or infinite, and is not in
            `values`.
    """

    step: int
    values: Mapping[str, float]
    by_rank: Mapping[str, Sequence[float]]
    left_out: Mapping[str, Sequence[int]]

    def problems(self) -> dict[str, str]:
        """Return a line on each value that some ranks don't have, by its name."""
        return {name: self._problem(name) for name in self.left_out}

    def _problem(self, name: str) -> str:
        ranks = self.left_out[name]
        found = sorted({str(self.by_rank[name][rank]) for rank in ranks})
        return (
            f"step {self.step}: {name} is {' or '.join(found)} on {ranks_text(ranks)}, "
            "and left out of the mean over the ranks"
        )


def exchange(
    comm: Collectives,
    step: int,
    values: Mapping[str, object],
    *,
    weight: float | mx.array,
    sums: Collection[str] = (),
) -> Report:
    """Combine the values of all ranks, on all of them.

    Sends 40 bytes a rank to agree, and 8 bytes a value.

    Args:
        step: the same on all ranks.
        values: this rank's numbers. Where ranks have different names the report has
            all of them, for which the names are sent as well.
        weight: how much this rank counts in a mean, finite. 0 leaves its means out.
        sums: names of values that are added, and not averaged.

    Raises:
        MismatchError: on all ranks, where a value is no number, a name is one of the
            report's own, a weight is negative or not finite, or the steps differ.
    """
    checked, problem = result_or_problem(partial(_numbers, weight), values)
    own_weight, numbers = checked or (0.0, {})
    names = sorted(numbers)
    of_ranks = agree(
        comm,
        "RunLog report",
        fingerprint(step),
        lambda: [f"step {step}"],
        number=float(fingerprint(names) % _MOST_NAMES),
        problem=problem,
    )
    if len(set(of_ranks)) > 1:
        every = comm.all_gather_bytes("\0".join(names).encode())
        names = sorted({n for each in every for n in each.decode().split("\0") if n})
    local = np.array([own_weight, *(numbers.get(name, math.nan) for name in names)])
    words = comm.all_gather_words(local.view(np.uint64)).view(np.float64)
    return combine(step, names, words[:, 1:], words[:, 0], sums)


def _numbers(
    weight: float | mx.array, values: Mapping[str, object]
) -> tuple[float, dict[str, float]]:
    numbers = {name: _number(name, value) for name, value in values.items()}
    for name in _RESERVED:
        if name in numbers:
            raise ValueError(f"{name!r} is a name of the report's own; choose another")
    counts = _number("weight", weight)
    if not 0 <= counts < math.inf:
        raise ValueError(f"weight must be finite, and 0 or more; found {counts}")
    return counts, numbers


def _number(name: str, value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"{name} must be a number: {error}") from error


def combine(
    step: int,
    names: Sequence[str],
    rows: NDArray[np.float64],
    weights: NDArray[np.float64],
    sums: Collection[str] = (),
) -> Report:
    """Combine values.

    Args:
        names: of the columns.
        rows: (ranks, names).
        weights: of the ranks.
    """
    values: dict[str, float] = {}
    left_out: dict[str, list[int]] = {}
    for name, column in zip(names, rows.T, strict=True):
        weighted = name not in SPREAD and name not in sums
        # A rank of weight 0 has nothing to average, and is not expected to.
        expected = (weights > 0) | (not weighted)
        counts = np.isfinite(column) & expected
        if (expected & ~counts).any():
            left_out[name] = np.flatnonzero(expected & ~counts).tolist()
        part = column[counts]
        if name in sums:
            values[name] = math.fsum(part) if part.size else math.nan
        else:
            part_weights = weights[counts] if weighted else np.ones(part.size)
            values[name] = _mean(part, part_weights)
        if name in SPREAD and part.size:
            values |= _spread(name, part, np.flatnonzero(counts))
    by_rank = {name: rows[:, i].tolist() for i, name in enumerate(names)}
    return Report(step, values, by_rank, left_out)


def _mean(values: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    if not values.size:
        return math.nan
    if (values == values[0]).all():  # no rounding
        return float(values[0])
    return math.fsum(values * weights) / math.fsum(weights)


def _spread(
    name: str, part: NDArray[np.float64], ranks: NDArray[np.intp]
) -> dict[str, float]:
    least, most = int(part.argmin()), int(part.argmax())
    return {
        f"{name}_min": float(part[least]),
        f"{name}_min_rank": int(ranks[least]),
        f"{name}_max": float(part[most]),
        f"{name}_max_rank": int(ranks[most]),
    }
